"""Scorers of texts and of their form: equal but for looks, similar, after a pattern, valid by a schema."""

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
from llmkit.evals.scorers.target import SingleField, absent
from llmkit.evals.scorers.values import folded, reached

__all__ = ["json_schema_valid", "regex_match", "text_match", "text_similarity"]

# A pattern that backtracks without end is given up after so long.
PATTERN_TIMEOUT_S = 1.0
# Comparing takes time and memory by the product of two lengths.
LONGEST_TEXT = 100_000
MOST_PROBLEMS = 3

Measure: TypeAlias = Literal["levenshtein", "jaro_winkler", "token_sort", "token_set"]


@dataclass(frozen=True, slots=True)
class _TextMatch(SingleField):
    is_about_letters: bool = True

    def __call__(self, output: Any, sample: Sample, /) -> Score:
        got, wanted = self.got(output), self.wanted(output, sample)
        if got is None or wanted is None:
            return absent(got, wanted)
        accepted = wanted if isinstance(wanted, list) else [wanted]
        answer = self._bare(_text(got))
        return Score(float(any(answer == self._bare(_text(each)) for each in accepted)))

    def _bare(self, text: str) -> str:
        text = folded(text)
        if not self.is_about_letters:
            return text
        # By category, not by a list: P are punctuation marks of all scripts. An accent (Mn) makes another letter.
        return " ".join("".join(" " if unicodedata.category(sign)[0] == "P" else sign for sign in text).split())


@dataclass(frozen=True, slots=True)
class _TextSimilarity(SingleField):
    is_quick: ClassVar[bool] = False

    measure: Measure = "levenshtein"

    def __call__(self, output: Any, sample: Sample, /) -> Score:
        got, wanted = self.got(output), self.wanted(output, sample)
        if got is None or wanted is None:
            return absent(got, wanted)
        a, b = (folded(_text(value)) if self.normalise else _text(value) for value in (got, wanted))
        if max(len(a), len(b)) > LONGEST_TEXT:
            raise ValueError(f"texts of more than {LONGEST_TEXT:,} characters are not compared; shorten them")
        # The measure of words finds nothing in common between two texts without words.
        return Score(1.0 if a == b else _measures()[self.measure](a, b))


@lru_cache(maxsize=1)
def _measures() -> Mapping[str, Callable[[str, str], float]]:
    from rapidfuzz import distance, fuzz

    return {
        "levenshtein": distance.Levenshtein.normalized_similarity,
        "jaro_winkler": distance.JaroWinkler.normalized_similarity,
        "token_sort": lambda a, b: fuzz.token_sort_ratio(a, b) / 100,
        "token_set": lambda a, b: fuzz.token_set_ratio(a, b) / 100,
    }


@dataclass(frozen=True, slots=True)
class _RegexMatch(SingleField):
    # The engine lets other threads run while it searches.
    is_quick: ClassVar[bool] = False

    pattern: str = ""
    is_whole: bool = True
    ignore_case: bool = False

    def __call__(self, output: Any, _sample: Sample, /) -> Score:
        got = self.got(output)
        if got is None:
            return Score(0.0, "nothing was given")
        return Score(float(_matches(self.pattern, _text(got), is_whole=self.is_whole, ignore_case=self.ignore_case)))


def _matches(pattern: str, text: str, *, is_whole: bool = False, ignore_case: bool = False) -> bool:
    compiled = _pattern(pattern, ignore_case)
    find = compiled.fullmatch if is_whole else compiled.search
    try:
        return find(text, timeout=PATTERN_TIMEOUT_S, concurrent=True) is not None
    except TimeoutError:
        raise TimeoutError(
            f"the pattern {pattern!r} backtracked for more than {PATTERN_TIMEOUT_S:g} s on {len(text):,} characters; "
            "write it without nested repeats"
        ) from None


@lru_cache(maxsize=256)
def _pattern(pattern: str, ignore_case: bool) -> Any:
    import regex

    return regex.compile(pattern, regex.IGNORECASE if ignore_case else 0)


@dataclass(frozen=True, slots=True)
class _JsonSchemaValid(Options):
    is_quick: ClassVar[bool] = False

    schema_json: str = field(default="{}")

    def __call__(self, output: Any, _sample: Sample, /) -> Score:
        value = reached(output, self.fields[0]) if self.fields else output
        try:
            document = _read(value) if isinstance(value, str) else to_jsonable_python(value, by_alias=True)
        except (ValueError, RecursionError) as error:
            return Score(0.0, f"not JSON: {error}")
        problems = list(_problems(document, self.schema_json))
        return Score(float(not problems), "; ".join(problems))


def _read(text: str) -> Any:
    return json.loads(text, parse_constant=_no_constant)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


def _problems(document: Any, schema_json: str) -> Iterator[str]:
    for number, error in enumerate(_validator(schema_json).iter_errors(document)):
        if number == MOST_PROBLEMS:
            yield "and more"
            return
        yield f"{error.json_path}: {error.message[:200]}"


@lru_cache(maxsize=64)
def _validator(schema_json: str) -> Any:
    from jsonschema import Draft202012Validator, FormatChecker, ValidationError
    from jsonschema.validators import extend
    from referencing import Registry

    def pattern(_validator: Any, expression: str, instance: Any, _schema: Any) -> Iterator[ValidationError]:
        if isinstance(instance, str) and not _matches(expression, instance):
            yield ValidationError(f"{instance!r} does not match {expression!r}")

    schema = json.loads(schema_json)
    Draft202012Validator.check_schema(schema)
    guarded = extend(Draft202012Validator, {"pattern": pattern})
    # An empty registry: references to other documents are errors, and nothing is fetched.
    return guarded(schema, registry=Registry(), format_checker=FormatChecker())


def _text(value: Any) -> str:
    plain = to_jsonable_python(value)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)


def text_match(field: str | None = None, *, ignore_punctuation: bool = True, name: str = "text_match") -> Scorer:
    """1 when two texts are equal but for their looks, else 0.

    Case, width of characters, runs of spaces and (unless told otherwise) punctuation do not count; accents do. The
    target may be a list of accepted texts.

    Args:
        field: Name or dotted path; None for an output type with one field.
        ignore_punctuation: Take every punctuation mark for a space.
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
    """How similar two texts are, from 0 to 1, by rapidfuzz.

    Args:
        field: Name or dotted path; None for an output type with one field.
        measure: `levenshtein` is 1 minus the edits over the longer length; `jaro_winkler` favours a common beginning;
            `token_sort` and `token_set` compare words without regard to their order, the second also to repeats.
        normalise: Compare without regard to case, width of characters and runs of spaces.
        name: Name of the metric.

    Raises:
        LLMEvaluationError: The measure is unknown.
    """
    if measure not in _measures():
        raise LLMEvaluationError(f"Unknown measure {measure!r}; known measures: {', '.join(_measures())}.")
    return _TextSimilarity(name, (field,) if field else (), normalise, measure)


def regex_match(
    pattern: str,
    field: str | None = None,
    *,
    whole: bool = True,
    ignore_case: bool = False,
    name: str = "regex_match",
) -> Scorer:
    """1 when the text has the form of a regular expression, else 0. The target takes no part.

    A pattern that has not decided within a second (one with nested repeats can take ages) is a scorer error.

    Args:
        pattern: An expression of the `regex` package, which reads those of `re`.
        field: Name or dotted path; None for an output type with one field.
        whole: The whole text must match; else a part of it is enough.
        ignore_case: Take capitals and small letters as equal.
        name: Name of the metric.

    Raises:
        LLMEvaluationError: The pattern cannot be read.
    """
    import regex

    try:
        _pattern(pattern, ignore_case)
    except regex.error as error:
        raise LLMEvaluationError(f"{name}: the pattern {pattern!r} cannot be read: {error}.") from None
    return _RegexMatch(name, (field,) if field else (), pattern=pattern, is_whole=whole, ignore_case=ignore_case)


def json_schema_valid(
    schema: Mapping[str, Any], field: str | None = None, *, name: str = "json_schema_valid"
) -> Scorer:
    """1 when the output is valid by a JSON schema (draft 2020-12, formats included), else 0. The target takes no part.

    References to other documents are not followed, and a pattern that does not end is a scorer error.

    Args:
        schema: The schema.
        field: Name or dotted path of a part of the output; a text in it is read as JSON. None for the whole output.
        name: Name of the metric.

    Raises:
        LLMEvaluationError: The schema itself is not valid.
    """
    from jsonschema import SchemaError

    schema_json = canonical_json(dict(schema))
    try:
        _validator(schema_json)
    except SchemaError as error:
        raise LLMEvaluationError(f"{name}: the schema is not valid at {error.json_path}: {error.message}.") from None
    return _JsonSchemaValid(name, (field,) if field else (), schema_json=schema_json)
