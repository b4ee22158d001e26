"""Scorers of strings: normalised equality, words that must occur, similarity, patterns."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, get_args

from pydantic_core import to_jsonable_python

from llmkit.errors import LLMEvaluationError
from llmkit.evals.answer_type import find_kinds
from llmkit.evals.dataset.dataset import Sample
from llmkit.evals.dataset.literals import read_literal
from llmkit.evals.scorers.base import Score, Scorer
from llmkit.evals.scorers.conversion import convert_value, refuse_target
from llmkit.evals.scorers.patterns import compile_pattern, is_match
from llmkit.evals.scorers.target import SingleField, score_absent
from llmkit.evals.scorers.values import fold_text
from llmkit.evals.scorers.words import Preset, normalise_strictly, normalise_words, split_words

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = ["contains", "regex_match", "text_match", "text_similarity"]

# Time and memory of a comparison grow with the product of both lengths.
LONGEST_TEXT = 100_000

Measure: TypeAlias = Literal["levenshtein", "jaro_winkler", "token_sort", "token_set"]


@dataclass(frozen=True, slots=True)
class _OneText(SingleField):
    """A scorer of a text, whose target may be a list of accepted ones."""

    def check_target(self, output_type: type[BaseModel], sample: Sample) -> None:
        """See `Options`. An object is not the text of an answer, and an empty list accepts none."""
        wanted, path = self.find_wanted(output_type, sample), self.get_path(output_type)
        info = output_type.model_fields.get(path)
        if info is None or find_kinds(info.annotation) & {"object", "collection", "other"}:
            return
        listed = wanted if isinstance(wanted, list) else [wanted]
        found = next((each for each in listed if isinstance(each, dict)), None)
        if found is not None:
            known = ", ".join(map(str, found)) or "none"
            refuse_target(
                sample,
                f"{path}: it is an object with the fields {known}, and the answer is text: map the field to compare, "
                f"such as target='COLUMN.{next(iter(found), 'text')}'",
            )
        if wanted == []:
            refuse_target(
                sample,
                f"{path}: the list of accepted texts is empty: give what a right answer says there, or leave the "
                "sample out with sample_of=",
            )


def _list_accepted(wanted: Any, *, with_list: bool = True) -> list[Any]:
    """Return the accepted values of a target: those of a list, also in a cell of a CSV file, or the one that it is.

    Args:
        wanted: The target.
        with_list: Whether a cell is also accepted as it stands.
    """
    if isinstance(wanted, list | tuple):
        return list(wanted)
    if isinstance(wanted, str) and wanted.startswith("["):
        found = read_literal(wanted)
        if isinstance(found, list) and found and all(isinstance(each, str) for each in found):
            return [wanted, *found] if with_list else found
    return [wanted]


@dataclass(frozen=True, slots=True)
class _TextMatch(_OneText):
    is_about_letters: bool = True
    preset: Preset = "words"

    def __call__(self, output: Any, sample: Sample, /) -> Score:
        got, wanted = self.get_value(output), self.get_target(output, sample)
        if got is None or wanted is None:
            return score_absent(got, wanted)
        path = self.get_path(type(output))
        accepted = [convert_value(type(output), path, each) for each in _list_accepted(wanted)]
        answer = self._normalise(_to_text(got))
        return Score(float(any(answer == self._normalise(_to_text(each)) for each in accepted)))

    def _normalise(self, text: str) -> str:
        if self.preset == "strict":
            return normalise_strictly(text)
        return normalise_words(text, squad=self.preset == "squad") if self.is_about_letters else fold_text(text)


@dataclass(frozen=True, slots=True)
class _Contains(_OneText):
    texts: tuple[str, ...] = ()
    is_every: bool = False
    is_whole: bool = True
    ignore_case: bool = True

    def check_target(self, output_type: type[BaseModel], sample: Sample) -> None:
        """See `Options`. With texts of its own it needs no target."""
        if not self.texts:
            _OneText.check_target(self, output_type, sample)

    def __call__(self, output: Any, sample: Sample, /) -> Score:
        got = self.get_value(output)
        wanted: Any = self.texts or self.get_target(output, sample)
        if got is None or wanted is None:
            return score_absent(got, wanted)
        answer = _to_text(got)
        texts = [_to_text(each) for each in _list_accepted(wanted, with_list=not self.is_every)]
        absent = [text for text in texts if not self._is_in(text, answer)]
        is_right = not absent if self.is_every else len(absent) < len(texts)
        return Score(float(is_right), "" if is_right else f"not in it: {', '.join(absent)}")

    def _is_in(self, text: str, answer: str) -> bool:
        if self.is_whole:
            words = split_words(text, ignore_case=self.ignore_case)
            if words.strip():
                return words in split_words(answer, ignore_case=self.ignore_case)
        # Text of punctuation alone has no words.
        return fold_text(text) in fold_text(answer) if self.ignore_case else text in answer


@dataclass(frozen=True, slots=True)
class _TextSimilarity(_OneText):
    is_quick: ClassVar[bool] = False

    measure: Measure = "levenshtein"

    def __call__(self, output: Any, sample: Sample, /) -> Score:
        got, wanted = self.get_value(output), self.get_target(output, sample)
        if got is None or wanted is None:
            return score_absent(got, wanted)
        return Score(max(self._compare(got, each) for each in _list_accepted(wanted)))

    def _compare(self, got: Any, wanted: Any) -> float:
        a, b = (fold_text(_to_text(value)) if self.normalise else _to_text(value) for value in (got, wanted))
        if max(len(a), len(b)) > LONGEST_TEXT:
            raise ValueError(f"texts of more than {LONGEST_TEXT:,} characters are too long to compare; shorten them")
        # Equal strings first: the measures of words find nothing in common between two strings without words.
        return 1.0 if a == b else _load_measures()[self.measure](a, b)


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

    def check_target(self, output_type: type[BaseModel], sample: Sample) -> None:
        """See `Options`. A pattern needs no target."""

    def __call__(self, output: Any, _sample: Sample, /) -> Score:
        got = self.get_value(output)
        if got is None:
            return Score(0.0, "nothing was given")
        return Score(float(is_match(self.pattern, _to_text(got), is_whole=self.is_whole, ignore_case=self.ignore_case)))


def _to_text(value: Any) -> str:
    plain = to_jsonable_python(value)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)


def text_match(
    field: str | None = None, *, preset: Preset = "words", ignore_punctuation: bool = True, name: str = "text_match"
) -> Scorer:
    """Score 1 when two strings are equal after normalisation, else 0. The target may be a list of accepted strings.

    Signs and symbols count in every preset: `-3` is not `3`, `3.5` not `35`, `C#` and `C++` are not `C`. An apostrophe
    in a word does not: `don't` equals `dont`. Accents make different letters.

    - `words` ignores case, width of characters, runs of spaces, and punctuation, which separates words.
    - `squad` ignores case, the articles a, an and the, and punctuation, which it deletes: `well-known` equals
      `wellknown`. Apart from signs and symbols, and from an answer that is nothing but an article, this is the
      normalisation of the SQuAD benchmark: P. Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension
      of Text", EMNLP 2016 (`normalize_answer` of its evaluation script).
    - `strict` ignores runs of spaces and the typographic form of quotes and hyphens. Case and punctuation count.

    Args:
        field: Name or dotted path; None for an output type with one field.
        preset: `words`, `squad` or `strict`.
        ignore_punctuation: False: ignore only case, width of characters and runs of spaces.
        name: Name of the metric.

    Raises:
        LLMEvaluationError: The preset is unknown, or another one than `words` should not ignore punctuation.

    Example:
        >>> from llmkit.evals import Sample
        >>> from pydantic import BaseModel
        >>> class Answer(BaseModel):
        ...     text: str
        >>> text_match(preset="squad")(Answer(text="The Eiffel Tower."), Sample("?", "Eiffel tower")).value
        1.0
    """
    if preset not in get_args(Preset):
        raise LLMEvaluationError(f"text_match has no preset {preset!r}; choose from {', '.join(get_args(Preset))}.")
    if preset != "words" and not ignore_punctuation:
        raise LLMEvaluationError(f"The preset {preset!r} says what it ignores; omit ignore_punctuation.")
    return _TextMatch(name, (field,) if field else (), is_about_letters=ignore_punctuation, preset=preset)


def contains(
    field: str | None = None,
    *,
    texts: str | Sequence[str] | None = None,
    every: bool = False,
    whole: bool = True,
    ignore_case: bool = True,
    name: str = "contains",
) -> Scorer:
    """Score 1 when a text contains the target, else 0. The target may be a list of accepted strings.

    Whole words must occur: `art` is not in `party`, `3` not in `-3` or `3.5`, `C` not in `C#`. Width of characters,
    spaces, punctuation and apostrophes do not count.

    Args:
        field: Name or dotted path; None for an output type with one field.
        texts: What to look for, instead of the target.
        every: Whether all strings of a list must occur; else one suffices.
        whole: False: a part of a word suffices, and punctuation counts.
        ignore_case: Ignore case.
        name: Name of the metric.

    Raises:
        LLMEvaluationError: `texts` is empty, or one of them is, which everything contains.

    Example:
        >>> from llmkit.evals import Sample
        >>> from pydantic import BaseModel
        >>> class Answer(BaseModel):
        ...     text: str
        >>> contains()(Answer(text="I think it is Paris."), Sample("Capital of France?", ["Paris", "Lutetia"])).value
        1.0
    """
    listed = (texts,) if isinstance(texts, str) else tuple(texts or ())
    if (texts is not None and not listed) or not all(text.strip() for text in listed):
        raise LLMEvaluationError("contains needs texts= that are not empty, or none to look for the target.")
    return _Contains(
        name, (field,) if field else (), texts=listed, is_every=every, is_whole=whole, ignore_case=ignore_case
    )


def text_similarity(
    field: str | None = None,
    *,
    measure: Measure = "levenshtein",
    normalise: bool = True,
    name: str = "text_similarity",
) -> Scorer:
    """Score the similarity of two strings from 0 to 1, by rapidfuzz. Of a list of references, the most similar counts.

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
