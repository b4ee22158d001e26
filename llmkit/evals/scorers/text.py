"""Scorers of strings and their form: normalised equality, similarity, patterns, JSON schemas."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, Literal, TypeAlias

from pydantic_core import to_jsonable_python

from llmkit.canonical_json import canonical_json
from llmkit.errors import LLMEvaluationError
from llmkit.evals.dataset.dataset import Sample
from llmkit.evals.scorers.base import Options, Score, Scorer
from llmkit.evals.scorers.conversion import convert_value
from llmkit.evals.scorers.target import SingleField, score_absent
from llmkit.evals.scorers.values import find_at_path, fold_text

__all__ = ["json_schema_valid", "regex_match", "text_match", "text_similarity"]

# A pattern that backtracks without end is given up after this time.
PATTERN_TIMEOUT_S = 1.0
# Time and memory of a comparison grow with the product of both lengths.
LONGEST_TEXT = 100_000
MOST_PROBLEMS = 3

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
        return Score(
            float(_is_match(self.pattern, _to_text(got), is_whole=self.is_whole, ignore_case=self.ignore_case))
        )


def _is_match(pattern: str, text: str, *, is_whole: bool = False, ignore_case: bool = False) -> bool:
    compiled = _compile_pattern(pattern, ignore_case)
    find = compiled.fullmatch if is_whole else compiled.search
    try:
        return find(text, timeout=PATTERN_TIMEOUT_S, concurrent=True) is not None
    except TimeoutError:
        raise TimeoutError(
            f"the pattern {pattern!r} backtracked for more than {PATTERN_TIMEOUT_S:g} s on {len(text):,} characters; "
            "write it without nested repeats"
        ) from None


@lru_cache(maxsize=256)
def _compile_pattern(pattern: str, ignore_case: bool) -> Any:
    import regex

    return regex.compile(pattern, regex.IGNORECASE if ignore_case else 0)


@dataclass(frozen=True, slots=True)
class _JsonSchemaValid(Options):
    is_quick: ClassVar[bool] = False

    schema_json: str = field(default="{}")

    def __call__(self, output: Any, _sample: Sample, /) -> Score:
        value = find_at_path(output, self.fields[0]) if self.fields else output
        try:
            document = _parse_json(value) if isinstance(value, str) else to_jsonable_python(value, by_alias=True)
        except (ValueError, RecursionError) as error:
            return Score(0.0, f"not JSON: {error}")
        problems = list(_find_problems(document, self.schema_json))
        return Score(float(not problems), "; ".join(problems))


def _parse_json(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


def _find_problems(document: Any, schema_json: str) -> Iterator[str]:
    for number, error in enumerate(_build_validator(schema_json).iter_errors(document)):
        if number == MOST_PROBLEMS:
            yield "and more"
            return
        yield f"{error.json_path}: {error.message[:200]}"


@lru_cache(maxsize=64)
def _build_validator(schema_json: str) -> Any:
    from jsonschema import Draft202012Validator, FormatChecker, ValidationError
    from jsonschema.validators import extend
    from referencing import Registry

    def check_pattern(_validator: Any, expression: str, instance: Any, _schema: Any) -> Iterator[ValidationError]:
        if isinstance(instance, str) and not _is_match(expression, instance):
            yield ValidationError(f"{instance!r} does not match {expression!r}")

    schema = json.loads(schema_json)
    Draft202012Validator.check_schema(schema)
    guarded = extend(Draft202012Validator, {"pattern": check_pattern})
    # An empty registry: references to other documents are errors, and nothing is fetched.
    return guarded(schema, registry=Registry(), format_checker=FormatChecker())


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
        _compile_pattern(pattern, ignore_case)
    except regex.error as error:
        raise LLMEvaluationError(f"{name}: the pattern {pattern!r} is invalid: {error}.") from None
    return _RegexMatch(name, (field,) if field else (), pattern=pattern, is_whole=whole, ignore_case=ignore_case)


def json_schema_valid(
    schema: Mapping[str, Any], field: str | None = None, *, name: str = "json_schema_valid"
) -> Scorer:
    """Score 1 when the output is valid by a JSON schema (draft 2020-12 with formats), else 0. The target is not used.

    References to other documents are not followed, and a pattern that does not end is a scorer error.

    Args:
        schema: The schema.
        field: Name or dotted path of a part of the output; a string in it is parsed as JSON. None for the whole output.
        name: Name of the metric.

    Raises:
        LLMEvaluationError: The schema itself is not valid.
    """
    from jsonschema import SchemaError

    schema_json = canonical_json(dict(schema))
    try:
        _build_validator(schema_json)
    except SchemaError as error:
        raise LLMEvaluationError(f"{name}: the schema is not valid at {error.json_path}: {error.message}.") from None
    return _JsonSchemaValid(name, (field,) if field else (), schema_json=schema_json)
