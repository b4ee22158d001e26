"""Scorers of dates, rankings, texts and forms, against closed forms; and what one may cost."""

import asyncio
import math
import sys
import threading
import time
from datetime import UTC, date, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from rapidfuzz.distance import Levenshtein

from llmkit.errors import LLMEvaluationError
from llmkit.evals import (
    Sample,
    Task,
    date_tolerance,
    exact_match,
    field_match,
    json_schema_valid,
    judge,
    numeric_tolerance,
    ranked_list,
    regex_match,
    text_match,
    text_similarity,
)
from llmkit.evals.scorers import SCORERS, apply_scorers, as_scorer


class Answer(BaseModel):
    text: str | None


class When(BaseModel):
    day: date | None


class Moment(BaseModel):
    at: datetime


class Ranking(BaseModel):
    places: list[str]


class Inner(BaseModel):
    n: int


class Outer(BaseModel):
    inner: Inner | None
    n: float | None = None


def scores(scorer, output, target, **options):
    sample = Sample("x", target, id="s")
    return asyncio.run(apply_scorers([as_scorer(scorer)], output, sample, **options))


def value(scorer, output, target):
    found = scores(scorer, output, target)
    assert found.errors == {}
    return found.values[scorer.name]


def problem(scorer, output, target=None, **options):
    found = scores(scorer, output, target, **options)
    assert found.values == {}
    return found.errors[as_scorer(scorer).name]


# --- texts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("got", "wanted", "hit"),
    [
        ("The  Cat.", "the cat", 1),
        ("“Grüße”, sagte er", "grüsse sagte er", 1),
        ("résumé", "resume", 0),
        ("\uff21\uff22\uff23", "abc", 1),
        ("New York", ["NYC", "new york"], 1),
        ("Boston", ["NYC", "new york"], 0),
        (None, "x", 0),
        (None, {"text": None}, 1),
    ],
)
def test_text_match_looks_at_words_not_at_looks(got, wanted, hit):
    assert value(text_match("text"), Answer(text=got), wanted) == hit


def test_punctuation_counts_when_it_should():
    assert value(text_match(ignore_punctuation=False), Answer(text="3.5"), "35") == 0
    assert value(text_match(ignore_punctuation=False), Answer(text="A B"), "a  b") == 1


@given(st.text(max_size=20), st.text(max_size=20))
@settings(max_examples=50)
def test_similarity_is_one_minus_the_edits_over_the_longer_length(a, b):
    try:
        (a + b).encode()
    except UnicodeEncodeError:
        return
    expected = 1 - Levenshtein.distance(a, b) / max(len(a), len(b), 1)
    assert value(text_similarity(normalise=False), Answer(text=a), {"text": b}) == pytest.approx(expected)


def test_similarity_by_words_and_its_limits():
    assert value(text_similarity(measure="token_sort"), Answer(text="smith john"), "John Smith") == 1
    assert value(text_similarity(), Answer(text="KITTEN"), "sitting") == pytest.approx(4 / 7)
    assert "100,000 characters" in problem(text_similarity(), Answer(text="a" * 100_001), "a")
    with pytest.raises(LLMEvaluationError, match="Unknown measure 'cosine'; known measures: levenshtein"):
        text_similarity(measure="cosine")


def test_a_pattern():
    assert value(regex_match(r"[A-Z]{2}-\d+"), Answer(text="AB-12"), None) == 1
    assert value(regex_match(r"[A-Z]{2}-\d+"), Answer(text="see AB-12"), None) == 0
    assert value(regex_match(r"ab-\d+", whole=False, ignore_case=True), Answer(text="see AB-12"), None) == 1
    with pytest.raises(LLMEvaluationError, match="is invalid"):
        regex_match("(")


@pytest.mark.slow
def test_a_pattern_that_backtracks_without_end_is_given_up():
    found = problem(regex_match(r"(.*a){20}(b)\2(.*a){20}x"), Answer(text="ba" * 30 + "bb" + "ab" * 30))
    assert "backtracked for more than 1 s" in found


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}, "required": ["n"]}


def test_validity_by_a_schema():
    assert value(json_schema_valid(SCHEMA, "text"), Answer(text='{"n": 1}'), None) == 1
    found = scores(json_schema_valid(SCHEMA, "text"), Answer(text='{"n": 0}'), None)
    assert found.values == {"json_schema_valid": 0}
    assert "$.n" in found.details["json_schema_valid"]
    assert value(json_schema_valid(SCHEMA, "text"), Answer(text="no json"), None) == 0
    assert value(json_schema_valid(SCHEMA), Outer(inner=None, n=2), None) == 1
    assert value(json_schema_valid({"properties": {"text": {"format": "ipv4"}}}), Answer(text="1.2.3"), None) == 0
    with pytest.raises(LLMEvaluationError, match="not valid at"):
        json_schema_valid({"type": "integr"})


@pytest.mark.slow
def test_a_schema_neither_fetches_nor_hangs():
    remote = json_schema_valid({"$ref": "http://127.0.0.1:9/schema.json"})
    assert "Unresolvable" in problem(remote, Answer(text="x"))
    hanging = json_schema_valid({"properties": {"text": {"pattern": r"(.*a){20}(b)\2(.*a){20}x"}}})
    assert "backtracked" in problem(hanging, Answer(text="ba" * 30 + "bb" + "ab" * 30))


# --- dates and numbers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("got", "hit"), [(date(2024, 2, 29), 1), (date(2024, 3, 1), 1), (date(2024, 3, 2), 0)])
def test_dates_within_days(got, hit):
    assert value(date_tolerance(days=1), When(day=got), "2024-02-29") == hit


def test_dates_of_other_kinds():
    noon = datetime(2024, 5, 1, 12, tzinfo=UTC)
    assert value(date_tolerance(days=0.5), Moment(at=noon), "2024-05-02T00:00:00+00:00") == 1
    assert value(date_tolerance(days=0.4), Moment(at=noon), "2024-05-02T00:00:00+00:00") == 0
    assert value(date_tolerance(days=0.5), Moment(at=noon.replace(tzinfo=None)), "2024-05-02T02:00:00+02:00") == 1
    assert value(date_tolerance(), Answer(text="2024-05-01"), {"text": "2024-05-01"}) == 1
    assert value(date_tolerance(), Answer(text="May Day"), {"text": "2024-05-01"}) == 0
    assert value(date_tolerance(), When(day=None), "2024-05-01") == 0
    assert value(date_tolerance(), When(day=None), {"day": None}) == 1
    assert "is not an ISO 8601 date" in problem(date_tolerance(), Answer(text="2024-05-01"), {"text": "May Day"})
    with pytest.raises(LLMEvaluationError, match="days= of 0 or more"):
        date_tolerance(days=-1)


def test_what_a_model_leaves_out_is_wrong_and_no_scorer_error():
    assert value(numeric_tolerance("n", absolute=1), Outer(inner=None), {"n": 3}) == 0
    assert value(field_match("inner.n"), Outer(inner=None), {"inner": {"n": 3}}) == 0
    assert "no field" in problem(field_match("inner.n"), Outer(inner=None), {"n": 3})


# --- rankings -----------------------------------------------------------------------------------------------------


def test_ndcg_by_hand():
    found = scores(ranked_list(k=3), Ranking(places=["x", "b", "b", "a", "c"]), {"places": ["a", "b", "c"]})
    # Without the repeat: x b a c; of these the first three places count.
    gained = 1 / math.log2(3) + 1 / math.log2(4)
    best = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert found.values == {"ranked_list": pytest.approx(gained / best), "ranked_list.reciprocal_rank": 0.5}


def test_graded_relevance():
    target = {"places": {"a": 3, "b": 2, "c": 1, "d": 0}}
    gained = 2 + 3 / math.log2(3) + 1 / math.log2(5)
    best = 3 + 2 / math.log2(3) + 1 / math.log2(4)
    assert value(ranked_list(), Ranking(places=["b", "a", "d", "c"]), target) == pytest.approx(gained / best)
    assert "below 0" in problem(ranked_list(), Ranking(places=["a"]), {"places": {"a": -1}})


def test_nothing_relevant():
    assert value(ranked_list(), Ranking(places=[]), {"places": []}) == 1
    assert scores(ranked_list(), Ranking(places=["a"]), {"places": []}).values["ranked_list.reciprocal_rank"] == 0
    with pytest.raises(LLMEvaluationError, match="k= of at least 1"):
        ranked_list(k=0)


@given(st.permutations("abcdef"), st.sets(st.sampled_from("abcdef"), min_size=1), st.integers(1, 8))
@settings(max_examples=60)
def test_ndcg_is_bounded_and_best_when_the_relevant_come_first(order, relevant, k):
    target = {"places": sorted(relevant)}
    first = sorted(order, key=lambda item: item not in relevant)
    assert value(ranked_list(k=k), Ranking(places=first), target) == pytest.approx(1)
    assert 0 <= value(ranked_list(k=k), Ranking(places=list(order)), target) <= 1 + 1e-12


# --- which field ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scorer", [numeric_tolerance(absolute=1), date_tolerance(), text_match(), regex_match("x"), ranked_list()]
)
def test_scorer_needs_its_field_named(scorer):
    """If the output type has several fields."""
    with pytest.raises(LLMEvaluationError, match="name the field; Outer has inner, n"):
        Task("t", [Sample("x")], "{input}", Outer, [scorer])


def test_every_built_in_scorer_has_a_name_that_data_can_use():
    assert set(SCORERS) == {
        "balanced_accuracy", "calibration", "contains", "date_tolerance", "exact_match", "field_match",
        "json_schema_valid", "judge",
        "macro_f1", "majority", "number_match", "per_class",
        "numeric_tolerance",
        "ranked_list", "regex_match", "set_f1", "text_match", "text_similarity",
    }  # fmt: skip


# --- time ---------------------------------------------------------------------------------------------------------


def test_hanging_function_is_a_scorer_error():
    """The other scores remain."""
    release = threading.Event()

    def stuck(output, sample):
        release.wait(60)
        return 1

    async def scored():
        return await apply_scorers(
            [as_scorer(stuck), exact_match()], Answer(text="a"), Sample("x", "a", id="s"), timeout_s=0.5
        )

    try:
        found = asyncio.run(scored())
    finally:
        release.set()
    assert found.values == {"exact_match": 1}
    assert found.errors["stuck"].startswith("TimeoutError: no score within 0.5 s; the limit is the option")


def test_an_asynchronous_scorer_that_hangs_is_cancelled():
    cancelled = []

    async def stuck(output, sample):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(sample.key)
            raise

    assert "no score within" in problem(stuck, Answer(text="a"), timeout_s=0.05)
    assert cancelled == ["s"]


def test_a_scorer_that_ignores_its_cancellation_is_left_behind(monkeypatch):
    monkeypatch.setattr("llmkit.evals.scorers.apply.CANCEL_TIMEOUT_S", 0.01)
    goes_on = []

    async def stubborn(output, sample):
        for _ in range(2):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                goes_on.append(True)
        return 1

    assert "no score within" in problem(stubborn, Answer(text="a"), timeout_s=0.01)
    assert goes_on


def test_stopping_the_run_stops_its_asynchronous_scorer():
    began, cancelled = threading.Event(), []

    async def slow(output, sample):
        began.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def stopped():
        work = asyncio.create_task(apply_scorers([as_scorer(slow)], Answer(text="a"), Sample("x", id="s")))
        assert await asyncio.to_thread(began.wait, 60)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(stopped())
    assert cancelled == [True]


def test_functions_do_not_hold_up_the_event_loop():
    async def beside():
        beats = 0

        def slow(output, sample):
            time.sleep(0.2)
            return 1

        work = asyncio.create_task(apply_scorers([as_scorer(slow)], Answer(text="a"), Sample("x", id="s")))
        while not work.done():
            await asyncio.sleep(0.01)
            beats += 1
        return beats

    assert asyncio.run(beside()) > 1


@pytest.mark.parametrize("is_async", [False, True])
def test_a_scorer_that_ends_the_program_is_a_scorer_error(is_async):
    def leave(output, sample):
        sys.exit(3)

    async def leave_later(output, sample):
        sys.exit(3)

    assert problem(leave_later if is_async else leave, Answer(text="a")) == "RuntimeError: SystemExit: 3"


def test_a_judge_alone_says_where_it_works():
    assert "needs an evaluation" in problem(judge("Is it polite?"), Answer(text="a"))


def test_equal_texts_are_wholly_similar_by_every_measure():
    for measure in ("levenshtein", "jaro_winkler", "token_sort", "token_set"):
        for text in ("", "?!", "a"):
            assert scores(text_similarity(measure=measure), Answer(text=text), text).values["text_similarity"] == 1


@pytest.mark.parametrize("text", ["NaN", '{"a": Infinity}', "[" * 100_000])
def test_almost_json_is_invalid(text):
    """It is not an error of the scorer."""
    found = scores(json_schema_valid({}, "text"), Answer(text=text), None)
    assert (found.values, found.errors) == ({"json_schema_valid": 0}, {})
