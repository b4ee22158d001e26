"""Lists and objects in a cell of text: as JSON, as Python prints them, or as numpy does."""

from __future__ import annotations

import ast
import io
import json
import tokenize
from collections.abc import Callable
from typing import Any

__all__ = ["read_literal"]


def read_literal(text: str) -> Any:
    """Return the list or object that a text is, as in a cell of a CSV file; any other text unchanged."""
    if text.lstrip()[:1] not in ("[", "{"):
        return text
    readers: tuple[Callable[[str], Any], ...] = (json.loads, lambda given: ast.literal_eval(_separate(given)))
    for read in readers:
        try:
            found = read(text.strip())
            json.dumps(found)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError):
            continue
        return found if isinstance(found, list | dict) else text
    return text


def _separate(text: str) -> str:
    """Return a list with commas between its values where numpy writes spaces: `['a' 'b']`.

    Python takes strings beside each other for one, so without commas the list would have one value, "ab".
    """
    parts: list[str] = []
    is_after_value = False
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT):
            continue
        is_value = token.type in (tokenize.STRING, tokenize.NUMBER, tokenize.NAME)
        parts += [","] if is_after_value and (is_value or token.string in ("-", "[")) else []
        parts.append(f" {token.string}")
        is_after_value = is_value or token.string == "]"
    return "".join(parts).strip()
