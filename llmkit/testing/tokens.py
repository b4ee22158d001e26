"""Token counts of the stand-in servers: one token per whitespace-separated word."""

import re

__all__ = ["count_tokens", "split_signs", "split_tokens", "take_tokens"]

_WORD = re.compile(r"\S+")
_PIECE = re.compile(r"\s*\S+\s*\Z|\s*\S+|\s+")
_SIGN = re.compile(r"\s+|\w+|[^\w\s]")


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


def split_tokens(text: str) -> list[str]:
    """Return the pieces in which `text` is streamed: each word with the white space before it."""
    return _PIECE.findall(text)


def split_signs(text: str) -> list[str]:
    """Return `text` as words, single signs and runs of white space, so that each value in compact JSON is a piece."""
    return _SIGN.findall(text)
