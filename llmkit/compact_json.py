"""Compact JSON by the standard library's own encoder, which is made once instead of once for every text.

`json.dumps` makes its C encoder anew for each call, and for values as small as ours that is half of the time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from json import encoder as standard
from typing import Any

__all__ = ["compact_encoder"]


def compact_encoder(
    *, sort_keys: bool = False, allow_nan: bool = True, default: Callable[[Any], Any] | None = None
) -> Callable[[Any], str]:
    """What gives the text of `json.dumps(value, ensure_ascii=True, separators=(",", ":"), ...)`.

    Args:
        sort_keys: As for `json.dumps`.
        allow_nan: As for `json.dumps`.
        default: As for `json.dumps`.

    Returns:
        A function that raises as `json.dumps` does: TypeError for what JSON does not know, ValueError for NaN where it
        is not allowed and for a value that holds itself.
    """
    whole = json.JSONEncoder(sort_keys=sort_keys, allow_nan=allow_nan, default=default, separators=(",", ":"))
    # Not documented, and so looked up: an interpreter may lack it.
    make: Callable[..., Callable[[Any, int], Iterable[str]]] | None = getattr(standard, "c_make_encoder", None)
    if make is None:
        return whole.encode
    # No markers: all threads would share them, and what holds itself ends in a RecursionError without.
    markers, indent, skip_keys = None, None, False
    escape = standard.encode_basestring_ascii
    parts = make(markers, whole.default, escape, indent, ":", ",", sort_keys, skip_keys, allow_nan)

    def encode(value: Any) -> str:
        try:
            return "".join(parts(value, 0))
        except RecursionError:
            raise ValueError("the value is nested too deeply, or holds itself") from None

    return encode
