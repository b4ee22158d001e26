"""The change from a plain request body to a streamed one, for kinds whose body says which it is."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["set_body_fields"]

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def set_body_fields(body: bytes, **fields: Any) -> bytes:
    """Return a JSON body with these fields of its object added or replaced.

    The body is read and written, not extended as text: LiteLLM writes `"stream": false` into some, and servers disagree
    on which of two fields of one name counts.
    """
    changed = _ENCODER.encode({**json.loads(body), **fields})
    try:
        return changed.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which only an escape can express
        return json.dumps({**json.loads(body), **fields}).encode()
