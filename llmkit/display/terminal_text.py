"""Foreign text for a terminal: what would steer it is written out instead."""

from __future__ import annotations

import re

__all__ = ["printable"]

# Control characters but line breaks and tabs, and what turns the direction of the text behind it: a terminal obeys the
# first (it is cleared, renamed, or made to type), and by the second `gnp.exe` reads as a picture.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""Write control characters and direction marks as Python escapes, such as `\x1b` or `\u202e`.

    A carriage return before a line feed is left out, since both are one line break. What is printable stays as it is.
    """
    return _STEERING.sub(_escape_character, text.replace("\r\n", "\n"))


def _escape_character(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")
