"""Token counts of the stand-in servers: one token per whitespace-separated word."""

import re

__all__ = ["count_tokens", "take_tokens"]

_WORD = re.compile(r"\S+")


def count_tokens(text: str) -> int:
    """Return the number of whitespace-separated words in `text`, 0 for none."""
    return len(text.split())


def take_tokens(text: str, limit: int) -> str:
    """Return `text` up to the end of its word number `limit`, with its white space as it was."""
    if limit <= 0:
        return ""
    for number, word in enumerate(_WORD.finditer(text), start=1):
        if number == limit:
            return text[: word.end()]
    return text
