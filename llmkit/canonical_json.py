"""One canonical text, and its hash, for values that mean the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from json import encoder as standard
from typing import Any

from pydantic_core import to_json

__all__ = ["canonical_json", "compact_encoder", "has_lone_surrogate", "json_object", "sha256_of"]


def has_lone_surrogate(text: str) -> bool:
    """Return whether a string contains half of a character, which cannot be sent or stored as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def compact_encoder(
    *, sort_keys: bool = False, allow_nan: bool = True, default: Callable[[Any], Any] | None = None
) -> Callable[[Any], str]:
    """Make an encoder that returns the text of `json.dumps(value, ensure_ascii=True, separators=(",", ":"), ...)`.

    Args:
        sort_keys: As for `json.dumps`.
        allow_nan: As for `json.dumps`.
        default: As for `json.dumps`.

    Returns:
        A function that raises as `json.dumps` does: TypeError for what JSON does not know, ValueError for NaN where it
        is not allowed and for a value that contains itself.
    """
    whole = json.JSONEncoder(sort_keys=sort_keys, allow_nan=allow_nan, default=default, separators=(",", ":"))
    # Not documented, and so looked up: an interpreter may lack it.
    make: Callable[..., Callable[[Any, int], Iterable[str]]] | None = getattr(standard, "c_make_encoder", None)
    if make is None:
        return whole.encode
    # No markers: all threads would share them, and a value that contains itself ends in a RecursionError without.
    markers, indent, skip_keys = None, None, False
    escape = standard.encode_basestring_ascii
    parts = make(markers, whole.default, escape, indent, ":", ",", sort_keys, skip_keys, allow_nan)

    def encode(value: Any) -> str:
        try:
            return "".join(parts(value, 0))
        except RecursionError:
            raise ValueError("the value is nested too deeply, or contains itself") from None

    return encode


_encode = compact_encoder(sort_keys=True, allow_nan=False)
# From this length on pydantic's writer is the faster one; a prompt of some pages takes it a third of the time.
_LONG_TEXT = 128


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys, no white space and ASCII only: equal values give equal bytes.

    Raises:
        ValueError: The value contains NaN or an infinity.
        TypeError: The value is not JSON-able.
    """
    if type(value) is str and len(value) >= _LONG_TEXT and value.isascii() and "\x7f" not in value:
        # The same text: the two differ in what is not ASCII, and in DEL.
        return to_json(value).decode("ascii")
    return _encode(value)


def sha256_of(value: Any) -> str:
    """Return the hexadecimal SHA-256 of the canonical JSON of a value."""
    return _sha256(canonical_json(value))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def json_object(body: bytes) -> Mapping[str, Any] | None:
    """Return the JSON object in these bytes, or None when they contain anything else."""
    try:
        try:
            value = json.loads(body)
        except ValueError as error:
            if not str(error).startswith("Exceeds the limit"):
                raise
            # Python reads no integer of thousands of digits; as a float it is an infinity, which no count is.
            value = json.loads(body, parse_int=float)
    except (ValueError, RecursionError):  # a hundred thousand brackets are no protocol either
        return None
    return value if isinstance(value, dict) else None
