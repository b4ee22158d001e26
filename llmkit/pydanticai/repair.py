"""JSON that is nearly there: fenced, wrapped in prose, with a comma too many. Never completed, never guessed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from json_repair import repair_json
from pydantic_core import from_json

__all__ = ["is_json", "mend_json"]

# json_repair takes 8 us a character and more on the worst texts; 30,000 keep the event loop for a quarter of a second.
MAX_REPAIRED_CHARS = 30_000
MAX_DEPTH = 64

_MARKS = re.compile(r'[{}\[\]"]|\\.', re.DOTALL)


def is_json(text: str) -> bool:
    """Return whether the whole text is one JSON value."""
    try:
        from_json(text)
    except (ValueError, TypeError):  # a TypeError for half of a character
        return False
    return True


def mend_json(text: str) -> str | None:
    """Return the only JSON object in the text as strict JSON; None when there is none or more than one.

    An empty object among other words does not count. One that breaks off is not completed, because the missing part
    would be invented: the model is called again. Takes time in proportion to the length of the text.
    """
    objects = list(dict.fromkeys(_objects(text.encode(errors="replace").decode())))
    if len(objects) != 1:
        return None
    (found,) = objects
    if not found[1:-1].strip():
        return None
    return found if is_json(found) else _mend_object(found)


def _objects(text: str) -> Iterator[str]:
    """Return the outermost `{...}` of a text whose brackets close; one that does not close ends in a lone brace."""
    depth, start, in_string = 0, 0, False
    for mark in _MARKS.finditer(text):
        sign = mark.group()
        if sign == '"' and depth:
            in_string = not in_string
        if in_string or len(sign) > 1 or sign == '"' or (not depth and sign != "{"):
            continue
        if sign in "{[":
            start = mark.start() if not depth else start
            depth += 1
        else:
            depth -= 1
            if not depth:
                yield text[start : mark.end()]
        if depth > MAX_DEPTH:
            break
    if depth:
        yield "{"


def _mend_object(found: str) -> str | None:
    if not 2 <= len(found) <= MAX_REPAIRED_CHARS:
        return None
    try:
        value = repair_json(found, return_objects=True, skip_json_loads=True, strict=True)
        return json.dumps(value, ensure_ascii=False, allow_nan=False) if isinstance(value, dict) and value else None
    except (ValueError, RecursionError):
        return None
