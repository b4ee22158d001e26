"""Log-probabilities of an answer: those of its tokens, summed up for the text and for each value in its JSON. Pure."""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

from llmkit.providers import TokenLogprob
from llmkit.types import Logprobs

__all__ = ["summarize_logprobs"]

# More values than any output type has fields; the values of a longer answer are no longer told apart.
MOST_FIELDS = 500
MOST_DEPTH = 32
# Token texts this much longer than the answer contain something else than the answer, such as reasoning.
EXTRA_SHARE, EXTRA_BYTES = 0.5, 64
_SPACE = re.compile(r"\s*")
# Marks of the end that some servers count as tokens: `<end_of_turn>`, `<|im_end|>`.
_END_MARKS = re.compile(rb"(?:\s|<\|?[\w-]{1,40}\|?>|</s>)+\Z")
_BEFORE_JSON = re.compile(r"\s*(?:```\w{0,10}\s*)?(?=\{)")
_DECODER = json.JSONDecoder()


def summarize_logprobs(tokens: Sequence[TokenLogprob], answer: str) -> Logprobs | None:
    """Sum up the tokens of an answer. Tokens of reasoning, of white space around it and of its end are left out.

    Where the answer cannot be found in the tokens (characters that a tokenizer cut, a call of a tool), all of them
    count if they are hardly longer than it, and fields are not distinguished.

    Args:
        tokens: Everything that the model wrote, in order.
        answer: The part of it that is the answer.
    """
    if not tokens:
        return None
    ends = list(accumulate(len(token.text) for token in tokens))
    starts = [0, *ends[:-1]]

    def sum_up(begin: int, end: int, fields: dict[str, Logprobs]) -> Logprobs | None:
        # A token counts when any byte of it lies in the range: a tokenizer joins quotes and letters as it likes.
        chosen = tokens[bisect_right(ends, begin) : bisect_left(starts, end)]
        if not chosen:
            return None
        values = [token.logprob for token in chosen]
        return Logprobs(mean=math.fsum(values) / len(values), min=min(values), tokens=len(values), fields=fields)

    text = answer.strip()
    begin = _find_answer(b"".join(token.text for token in tokens), text.encode(errors="replace"))
    size = len(text.encode(errors="replace"))
    if begin is None:
        return sum_up(0, ends[-1], {}) if ends[-1] <= size * (1 + EXTRA_SHARE) + EXTRA_BYTES else None
    places = [0, *accumulate(len(char.encode(errors="replace")) for char in text)] if not text.isascii() else None
    fields: dict[str, Logprobs] = {}
    for path, first, last in _list_values(text):
        span = (first, last) if places is None else (places[first], places[last])
        found = sum_up(begin + span[0], begin + span[1], {})
        if found is not None:
            fields[path] = found
    return sum_up(begin, begin + size, fields)


def _find_answer(written: bytes, answer: bytes) -> int | None:
    """Return where the answer begins in everything that was written: at its end, or anywhere."""
    if not answer:
        return None
    for whole in (written.rstrip(), _END_MARKS.sub(b"", written)):
        if whole.endswith(answer):
            return len(whole) - len(answer)
    at = written.find(answer)
    return None if at < 0 else at


def _list_values(text: str) -> list[tuple[str, int, int]]:
    """Return path, begin and end of the values of a JSON object that are no objects; [] if the text is none.

    Quotes are not part of a string's value unless it is empty.
    """
    start = _BEFORE_JSON.match(text)
    if start is None:
        return []
    found: list[tuple[str, int, int]] = []
    try:
        for value in _walk_object(text, start.end(), ""):
            found.append(value)
            if len(found) > MOST_FIELDS:
                return []
    except (ValueError, IndexError, RecursionError):  # no JSON, cut off, or nested a thousand times
        return []
    return found


def _walk_object(text: str, at: int, prefix: str) -> Iterator[tuple[str, int, int]]:
    """Yield the values of the object that begins at a brace."""
    at = _skip_space(text, at + 1)
    while text[at] != "}":
        name, at = _DECODER.raw_decode(text, at)
        if not isinstance(name, str) or text[at := _skip_space(text, at)] != ":":
            raise ValueError("not an object")
        at = _skip_space(text, at + 1)
        path = prefix + name.encode(errors="replace").decode()
        _value, end = _DECODER.raw_decode(text, at)
        # Each level reads its values once more, so a deep one is not opened.
        is_open = text[at] == "{" and text[_skip_space(text, at + 1)] != "}"
        if is_open and path.count(".") < MOST_DEPTH:
            yield from _walk_object(text, at, f"{path}.")
        else:
            inner = 1 if text[at] == '"' and end - at > 2 else 0
            yield path, at + inner, end - inner
        at = _skip_space(text, end)
        if text[at] == ",":
            at = _skip_space(text, at + 1)


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return at if match is None else match.end()
