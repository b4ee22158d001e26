"""Scorers of strings: normalised equality, similarity, patterns."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal, TypeAlias

from pydantic_core import to_jsonable_python

from llmkit.errors import LLMEvaluationError
from llmkit.evals.dataset.dataset import Sample
from llmkit.evals.scorers.base import Score, Scorer
from llmkit.evals.scorers.conversion import convert_value
from llmkit.evals.scorers.patterns import compile_pattern, is_match
from llmkit.evals.scorers.target import SingleField, score_absent
from llmkit.evals.scorers.values import fold_text

__all__ = ["regex_match", "text_match", "text_similarity"]

# Time and memory of a comparison grow with the product of both lengths.
LONGEST_TEXT = 100_000

Measure: TypeAlias = Literal["levenshtein", "jaro_winkler", "token_sort", "token_set"]


@dataclass(frozen=True, slots=True)
class _TextMatch(SingleField):
    is_about_letters: bool = True

    def __call__(self, output: Any, sample: Sample, /) -> Score:
        got, wanted = self.get_value(output), self.get_target(output, sample)
        if got is None or wanted is None:
            return score_absent(got, wanted)
        path = self.get_path(type(output))
        accepted = (
            [convert_value(type(output), path, each) for each in wanted] if isinstance(wanted, list) else [wanted]
        )
        answer = self._normalise(_to_text(got))
        return Score(float(any(answer == self._normalise(_to_text(each)) for each in accepted)))

    def _normalise(self, text: str) -> str:
        text = fold_text(text)
        if not self.is_about_letters:
            return text
        # Category P covers punctuation marks of all scripts. Accents (Mn) stay, because they make different letters.
        return " ".join("".join(" " if unicodedata.category(sign)[0] == "P" else sign for sign in text).split())


@dataclass(frozen=True, slots=True)
class _TextSimilarity(SingleField):
    is_quick: ClassVar[bool] = False

    measure: Measure = "levenshtein"

    def __call__(self, output: Any, sample: Sample, /) -> Score:
        got, wanted = self.get_value(output), self.get_target(output, sample)
        if got is None or wanted is None:
            return score_absent(got, wanted)
        a, b = (fold_text(_to_text(value)) if self.normalise else _to_text(value) for value in (got, wanted))
        if max(len(a), len(b)) > LONGEST_TEXT:
            raise ValueError(f"texts of more than {LONGEST_TEXT:,} characters are too long to compare; shorten them")
        # Equal strings first: the measures of words find nothing in common between two strings without words.
        return Score(1.0 if a == b else _load_measures()[self.measure](a, b))


@lru_cache(maxsize=1)
def _load_measures() -> Mapping[str, Callable[[str, str], float]]:
    from rapidfuzz import distance, fuzz

    return {
        "levenshtein": distance.Levenshtein.normalized_similarity,
        "jaro_winkler": distance.JaroWinkler.normalized_similarity,
        "token_sort": lambda a, b: fuzz.token_sort_ratio(a, b) / 100,
        "token_set": lambda a, b: fuzz.token_set_ratio(a, b) / 100,
    }


@dataclass(frozen=True, slots=True)
class _RegexMatch(SingleField):
    # The regex engine lets other threads run while it searches.
    is_quick: ClassVar[bool] = False

    pattern: str = ""
    is_whole: bool = True
    ignore_case: bool = False

    def __call__(self, output: Any, _sample: Sample, /) -> Score:
        got = self.get_value(output)
        if got is None:
            return Score(0.0, "nothing was given")
        return Score(float(is_match(self.pattern, _to_text(got), is_whole=self.is_whole, ignore_case=self.ignore_case)))


def _to_text(value: Any) -> str:
    plain = to_jsonable_python(value)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)


def text_match(field: str | None = None, *, ignore_punctuation: bool = True, name: str = "text_match") -> Scorer:
    """Score 1 when two strings are equal after normalisation, else 0.

    Case, width of characters, runs of spaces and (by default) punctuation are ignored; accents are not. The target may
    be a list of accepted strings.

    Args:
        field: Name or dotted path; None for an output type with one field.
        ignore_punctuation: Treat every punctuation mark as a space.
        name: Name of the metric.
    """
    return _TextMatch(name, (field,) if field else (), is_about_letters=ignore_punctuation)


def text_similarity(
    field: str | None = None,
    *,
    measure: Measure = "levenshtein",
    normalise: bool = True,
    name: str = "text_similarity",
) -> Scorer:
    """Score the similarity of two strings from 0 to 1, by rapidfuzz.

    Args:
        field: Name or dotted path; None for an output type with one field.
        measure: `levenshtein` is 1 minus the edits over the longer length; `jaro_winkler` favours a common beginning;
            `token_sort` and `token_set` compare words in any order, the second also ignoring repeats.
        normalise: Ignore case, width of characters and runs of spaces.
        name: Name of the metric.

    Raises:
        LLMEvaluationError: The measure is unknown.
    """
    if measure not in _load_measures():
        raise LLMEvaluationError(f"Unknown measure {measure!r}; known measures: {', '.join(_load_measures())}.")
    return _TextSimilarity(name, (field,) if field else (), normalise, measure)


def regex_match(
    pattern: str,
    field: str | None = None,
    *,
    whole: bool = True,
    ignore_case: bool = False,
    name: str = "regex_match",
) -> Scorer:
    """Score 1 when the text matches a regular expression, else 0. The target is not used.

    A pattern that takes longer than a second (possible with nested repeats) is a scorer error.

    Args:
        pattern: An expression of the `regex` package, which accepts those of `re`.
        field: Name or dotted path; None for an output type with one field.
        whole: Whether the whole text must match; else a part suffices.
        ignore_case: Ignore case.
        name: Name of the metric.

    Raises:
        LLMEvaluationError: The pattern is invalid.
    """
    import regex

    try:
        compile_pattern(pattern, ignore_case)
    except regex.error as error:
        raise LLMEvaluationError(f"{name}: the pattern {pattern!r} is invalid: {error}.") from None
    return _RegexMatch(name, (field,) if field else (), pattern=pattern, is_whole=whole, ignore_case=ignore_case)
