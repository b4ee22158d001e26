"""Normal forms of texts: what counts as the same words. Signs and symbols that change a meaning are kept."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final, Literal, TypeAlias

from llmkit.evals.scorers.values import compose_text, fold_text

__all__ = ["Preset", "normalise_strictly", "normalise_words", "split_words"]

Preset: TypeAlias = Literal["words", "squad", "strict"]

# Forms of one mark, between which typists and models do not choose.
_MARKS: Final = str.maketrans(
    dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d", "-")
    | dict.fromkeys("\u2018\u2019\u201b\u02bc\uff07", "'")
    | dict.fromkeys("\u201c\u201d\u201f\uff02", '"')
)
# Characters without width, which are not seen. Joiners stay: words of Persian and signs of emoji differ by them.
_INVISIBLE: Final = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))
_DROPPED: Final = r"""
    (?! (?<![\p{L}\p{N}-]) - \p{Sc}? \.? \p{N}                # a sign: -3, -$3
      | (?<=[\p{L}\p{N}]) - (?![\p{L}\p{N}-])                  # O-, a grade or a group
      | (?<=\p{N}) [-.,:/] (?=\p{N})                           # 3.5, 1:30, 3-4
      | (?<![\p{L}\p{N}.]) \. (?=\p{N})                        # .5
      | (?<=[\p{L}\p{N}]) \#                                   # C#
      | (?<=\p{N}) %
    )
    [\p{P}`]                                                   # a backtick quotes: `code`
"""
# As French and German have it.
_SPACED_PERCENT: Final = r"(?<=\p{N})[ ]%"
_APOSTROPHE: Final = r"(?<=\p{L})'(?=\p{L})"
_ARTICLE: Final = r"(?<!\S)(?:a|an|the)(?!\S)"
# Scripts that put no spaces between words, or endings onto them, so that a word is not bounded by spaces.
_UNSPACED: Final = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
# Symbols that touch a number or each other; C++ and A+ are words, and 3+4 is none.
_SYMBOL: Final = r"(?<=[\p{L}\p{N}+])\+(?![\p{L}\p{N}])(*SKIP)(*FAIL)|[\p{S}%]"


@lru_cache(maxsize=8)
def _compile(pattern: str) -> Any:
    # The `regex` package knows categories and scripts. It takes 30 ms to load.
    import regex

    return regex.compile(pattern, regex.VERBOSE if "\n" in pattern else 0)


def normalise_words(text: str, *, squad: bool = False, ignore_case: bool = True) -> str:
    """Return a text without differences in case, width of characters, spaces, punctuation and apostrophes.

    Kept are accents, symbols, signs of numbers, marks between digits, `%` after them, and `#` and `-` that end a word.

    Args:
        text: Any text.
        squad: Delete punctuation instead of separating words by it, and delete the articles a, an and the.
        ignore_case: Fold case.
    """
    text = text.translate(_INVISIBLE)
    folded = fold_text(text) if ignore_case else " ".join(compose_text(text, "NFKC").split())
    plain = _compile(_APOSTROPHE).sub("", _compile(_SPACED_PERCENT).sub("%", folded.translate(_MARKS)))
    words = " ".join(_compile(_DROPPED).sub("" if squad else " ", plain).split())
    # An answer that is nothing but an article, such as the choice "A", is none.
    return (" ".join(_compile(_ARTICLE).sub(" ", words).split()) or words) if squad else words


def normalise_strictly(text: str) -> str:
    """Return a text in which only spaces, typographic forms of a mark and apostrophes in words make no difference."""
    words: str = _compile(_APOSTROPHE).sub(
        "", " ".join(compose_text(text.translate(_INVISIBLE), "NFC").translate(_MARKS).split())
    )
    return words


def split_words(text: str, *, ignore_case: bool = True) -> str:
    """Return the words and symbols of a text with a space around each, so that words can be looked up in it."""
    spaced = _compile(_SYMBOL).sub(r" \g<0> ", normalise_words(text, ignore_case=ignore_case))
    spaced = _compile(_UNSPACED).sub(r" \g<0> ", spaced)
    return f" {' '.join(spaced.split())} "
