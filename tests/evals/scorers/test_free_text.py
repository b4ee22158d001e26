"""Scorers of free text: numbers in it, words in it, and the same words."""

import asyncio
import time
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from llmkit.errors import LLMEvaluationError
from llmkit.evals import Sample, Task, contains, load_tasks, number_match, text_match, text_similarity
from llmkit.evals.scorers import apply_scorers
from llmkit.evals.scorers.numerals import choose_numerals, find_numerals
from llmkit.evals.scorers.words import normalise_words, split_words


class Answer(BaseModel):
    text: str | None


class Amount(BaseModel):
    amount: float


def score(scorer, text, target):
    return scorer(Answer(text=text), Sample("?", {"text": target}, id="s")).value


def read(text, **options):
    return [float(numeral.value) for numeral in choose_numerals(text, **options)]


@pytest.mark.parametrize(
    ("scorer", "target"),
    [
        (text_match(), "['Paris', 'Lutetia']"),
        (text_match(), "['Lutetia' 'Paris']"),
        (text_match(), ["Lutetia", "Paris"]),
        (contains(), '["Paris", "Lutetia"]'),
        (text_similarity(), ["Lutetia", "Paris"]),
    ],
)
def test_a_list_of_accepted_texts_may_be_a_cell(scorer, target):
    assert score(scorer, "Paris", target) == 1


def test_a_list_in_a_cell_is_still_a_text():
    assert score(text_match(), "['Paris', 'Lutetia']", "['Paris', 'Lutetia']") == 1
    assert score(contains(every=True), "Paris or Lutetia", "['Paris', 'Lutetia']") == 1


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ({"text": ["Paris"], "answer_start": [5]}, "fields text, answer_start, .* such as target='COLUMN.text'"),
        ([{"text": "Paris"}], "such as target='COLUMN.text'"),
        ([], "the list of accepted texts is empty"),
    ],
)
@pytest.mark.parametrize("scorer", [text_match(), contains(), text_similarity()], ids=lambda scorer: scorer.name)
def test_a_target_that_is_no_text_is_refused(scorer, target, problem):
    view = Task("t", [Sample("x")], "{input}", str).answer.view
    with pytest.raises(LLMEvaluationError, match=problem):
        scorer.check_target(view, Sample("?", target, id="s"))


# --- numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("$1,080.50", 1080.5),
        ("50%", 50),
        ("1 080", 1080),
        ("1\u202f080,50 €", 1080.5),
        ("3 * 24 = 72\n#### 72", 72),
        ("#### 72 eggs\nChecked on page 9.", 72),
        ("#### 1. Add\n2 and 3 make 5", 5),
        (r"\boxed{72}, as 8 * 9", 72),
        (r"It is \boxed{\frac{3}{4}} of 12", 0.75),
        (r"\boxed{-\frac{1}{2}}", -0.5),
        (r"\boxed{\frac{-3}{4}}", -0.75),
        (r"$-2\frac{1}{2}$", -2.5),
        (r"$x = -\dfrac{7}{8}$", -0.875),
        (r"\frac34", 0.75),
        (r"5\tfrac12", 5.5),
        (r"\frac{3.5}{2}", 1.75),
        (r"$\frac{1{,}080}{4}$", 270),
        (r"\boxed{33\frac{1}{3}\%}", 100 / 3),
        (r"\boxed{10,\!080}", 10_080),
        (r"\boxed{\text{42 cm}}", 42),
        ("```python\nprint(2)\n```\nAnswer: `18`", 18),
        ("R$ 1.234,56", 1234.56),
        ("CHF 1'234.56", 1234.56),
        ("१२३", 123),
        ("٤\u066b٢", 4.2),
        ("6.02·10^23", 6.02e23),
        ("-7°C", -7),
        ("($5.00)", 5),
        ("$1.5M", 1.5),
        ("2024-05-01", 1),
        ("5'11\"", 11),
        (r"$1{,}080$", 1080),
        ("1.080,50", 1080.5),
        ("1.080.500", 1_080_500),
        ("1,080", 1080),
        ("1.080", 1.08),
        ("0,125", 0.125),
        ("12,34,567", 1_234_567),
        ("1'080.50", 1080.5),
        ("1_080", 1080),
        ("-3", -3),
        ("\u22123", -3),
        ("-$5", -5),
        ("$-5", -5),
        ("-€ 1.080,50", -1080.5),
        ("10-3", 3),
        ("pages 3\u20135", 5),
        ("- 7 of them", 7),
        ("covid-19", 19),
        ("USD1080", 1080),
        ("3/4", 0.75),
        ("-1 3/4", -1.75),
        ("1½", 1.5),
        ("12/05/2024", 2024),
        ("1.08e3", 1080),
        ("1.08 x 10^{-3}", 0.00108),
        ("1.08\u00d710³", 1080),
        ("2^10", 1024),
        ("2 million", 2_000_000),
        ("3 hundred thousand", 300_000),
        ("(1.5,2.5)", 2.5),
        ("12 eggs in the H2O of 25 m²", 25),
        ("٤٢", 42),
        ("答案是72。", 72),
        ("Total: **72**.", 72),
        ("Add\n5", 5),
    ],
)
def test_last_number_of_a_text(text, number):
    assert read(text) == [pytest.approx(number)]


@pytest.mark.parametrize("text", ["", "none", "H2O", "x^2", "utf8", "-", "####"])
def test_text_without_a_number(text):
    assert read(text) == []


@pytest.mark.parametrize(
    ("text", "decimal", "number"), [("1.080", ",", 1080), ("1,080", ",", 1.08), ("1,080", ".", 1080), ("1.5", ".", 1.5)]
)
def test_mark_of_decimals_can_be_named(text, decimal, number):
    assert read(text, decimal=decimal) == [number]


@given(
    st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-(10**15), max_value=10**15),
    st.sampled_from([(",", "."), (".", ","), ("\u202f", ","), ("'", "."), ("", ".")]),
    st.sampled_from(["{}", "The answer is {}.", "It costs ${}", "x = {} cm", "(2 + 2) **{}**\n", "[1, 2] {}"]),
)
def test_a_written_number_is_read_as_it_was_meant(value, marks, sentence):
    thousands, decimals = marks
    written = f"{value:,.2f}".replace(",", "_").replace(".", decimals).replace("_", thousands)
    assert [numeral.value for numeral in choose_numerals(sentence.format(written))] == [value]


@given(st.text(alphabet="0123456789.,'/%$-+eE^{}[]()xX* \n½²\u202f#\\boxedfrac", max_size=60))
@settings(max_examples=60)
def test_any_text_is_read(text):
    for decimal in ("auto", ".", ","):
        assert all(isinstance(numeral.value, Decimal) for numeral in find_numerals(text, decimal))
    assert len(choose_numerals(text, "first")) == len(choose_numerals(text, "last"))


@pytest.mark.parametrize(
    ("text", "target", "options", "hit"),
    [
        ("so 1,080", 1080, {}, 1),
        ("so 1,080", "She has 5 * 216 = 1080\n#### 1080", {}, 1),
        ("72", [71, 72], {}, 1),
        ("71.9", 72, {}, 0),
        ("71.9", 72, {"absolute": 0.1}, 1),
        ("71.9", 72, {"relative": 0.001}, 0),
        ("71.9", 72, {"relative": 0.002}, 1),
        ("10000000001", 10_000_000_000, {}, 0),
        ("0.3333333333", "1/3", {}, 1),
        ("0.1", 0.1, {}, 1),
        ("50%", 50, {}, 1),
        ("50%", 0.5, {}, 1),
        ("0.5%", "50%", {}, 0),
        ("50%", 0.5, {"percent": "number"}, 0),
        ("50%", 50, {"percent": "share"}, 0),
        ("3 or 4", 3, {"which": "first"}, 1),
        ("3 or 4", 4, {"which": "only"}, 0),
        ("4, that is 4.0", 4, {"which": "only"}, 1),
        ("1.080", 1080, {"decimal": ","}, 1),
        ("1e999999999", 5, {}, 0),
        ("many", 5, {}, 0),
        (None, 5, {}, 0),
    ],
)
def test_number_match(text, target, options, hit):
    assert score(number_match(**options), text, target) == hit


def test_number_match_reads_a_number_of_the_output_type():
    sample = Sample("?", "$1,080.50", id="s")
    assert asyncio.run(apply_scorers([number_match()], Amount(amount=1080.5), sample)).values == {"number_match": 1.0}


def test_target_without_a_number_is_refused():
    task = Task("sums", [Sample("?", "seventy", id="s")], "{input}", Answer, [number_match()])
    with pytest.raises(LLMEvaluationError, match="'s' has a target that no answer can equal: text: there is no number"):
        task.scorer_objects[0].check_target(Answer, task.load().samples[0])


@pytest.mark.parametrize(
    "options", [{"absolute": -1}, {"relative": float("nan")}, {"which": "best"}, {"decimal": ";"}, {"percent": "%"}]
)
def test_unknown_options_are_refused(options):
    with pytest.raises(LLMEvaluationError, match="number_match"):
        number_match(**options)


def test_yaml_names_the_scorers_and_their_options(tmp_path):
    Path(tmp_path / "task.yaml").write_text(
        """
name: sums
dataset: sums.jsonl
prompt: "{input}"
output_schema: {properties: {text: {type: string}}, required: [text]}
scorers:
  - number_match: {field: text, relative: 0.01, decimal: ","}
  - contains: {texts: [eggs, boxes], every: true}
  - text_match: {preset: squad}
""".lstrip()
    )
    (task,) = load_tasks(tmp_path / "task.yaml")
    output = task.output_type(text="The 1.080 eggs in boxes!")
    found = asyncio.run(apply_scorers(task.scorer_objects, output, Sample("?", "1.080 eggs in boxes", id="s")))
    assert (found.values, found.errors) == ({"number_match": 1, "contains": 1, "text_match": 1}, {})


# --- words --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "words", "squad", "strict"),
    [
        ("-3", "3", 0, 0, 0),
        ("\u22123", "-3", 1, 1, 1),
        ("3.5", "35", 0, 0, 0),
        ("50%", "50", 0, 0, 0),
        ("50 %", "50", 0, 0, 0),
        ("50 %", "50%", 1, 1, 0),
        ("C#", "C", 0, 0, 0),
        ("`Paris`", "Paris", 1, 1, 0),
        ("```\nParis\n```", "paris", 1, 1, 0),
        ("\ufeffPar\u200bis", "Paris", 1, 1, 1),
        ("**A)**", "A", 1, 1, 0),
        ("U.S.A.", "USA", 0, 1, 0),
        ("1,000", "1000", 0, 0, 0),
        ("C++", "C", 0, 0, 0),
        ("A-", "A", 0, 0, 0),
        ("don\u2019t", "dont", 1, 1, 1),
        ("The cat.", "cat", 0, 1, 0),
        ("a", "the", 0, 0, 0),
        ("A", "a", 1, 1, 0),
        ("Paris.", "Paris", 1, 1, 0),
        ("## Paris", "paris", 1, 1, 0),
        ("well-known", "well known", 1, 0, 0),
        ("well-known", "wellknown", 0, 1, 0),
        ("New  York\n", "New York", 1, 1, 1),
        ("“so”", '"so"', 1, 1, 1),
        ("résumé", "resume", 0, 0, 0),
    ],
)
def test_presets(a, b, words, squad, strict):
    found = [score(text_match(preset=preset), a, b) for preset in ("words", "squad", "strict")]
    assert found == [words, squad, strict]


@pytest.mark.parametrize(
    ("text", "target", "whole", "part"),
    [
        ("a party", "art", 0, 1),
        ("It is -3", "3", 0, 1),
        ("3.5", 3, 0, 1),
        ("x=3", "3", 1, 1),
        ("is 10 %", "10%", 1, 0),
        ("10%", "10", 1, 1),
        ("so `C`.", "C", 1, 1),
        ("The\u200bUSA\u200b won", "USA", 0, 1),
        ("Paris\u200b won", "Paris", 1, 1),
        ("It's $5.", "$5", 1, 1),
        ("C# and C++", "C", 0, 1),
        ("I like C++.", "c++", 1, 1),
        ("I don't", "dont", 1, 0),
        ("New   York!", "new york", 1, 1),
        ("我在北京工作", "北京", 1, 1),
        ("Rome", ["Paris", "Rome"], 1, 1),
        ("a!", "!", 1, 1),
        (None, "a", 0, 0),
    ],
)
def test_contains(text, target, whole, part):
    assert [score(contains(), text, target), score(contains(whole=False), text, target)] == [whole, part]


def test_contains_every_text_of_its_own_without_a_target():
    scorer = contains(texts=["Refund", "14 days"], every=True, ignore_case=False)
    scored = [
        asyncio.run(apply_scorers([scorer], Answer(text=text), Sample("?", id="s")))
        for text in ("Refund in 14 days.", "refund in 14 days", "Refund")
    ]
    assert [each.values["contains"] for each in scored] == [1, 0, 0]
    assert scored[2].details == {"contains": "not in it: 14 days"}


@pytest.mark.parametrize("texts", [[], "", [" "]])
def test_contains_refuses_what_is_in_everything(texts):
    with pytest.raises(LLMEvaluationError, match="texts="):
        contains(texts=texts)


def test_unknown_presets_are_refused():
    with pytest.raises(LLMEvaluationError, match="no preset 'loose'; choose from words, squad, strict"):
        text_match(preset="loose")
    with pytest.raises(LLMEvaluationError, match="omit ignore_punctuation"):
        text_match(preset="squad", ignore_punctuation=False)


@given(st.text(max_size=40))
@settings(max_examples=60)
def test_normal_forms_are_stable_and_whole_texts_contain_themselves(text):
    words = normalise_words(text)
    assert normalise_words(words) == words
    assert split_words(text) in f" {split_words(text)} "
    assert score(contains(), text, text) == score(text_match(), text, text) == 1


@pytest.mark.parametrize(
    "piece",
    [
        "1,",
        "1",
        "1 080 ",
        "1/2",
        "1 1/",
        "1*",
        "1^",
        "-",
        "\\boxed{",
        "####\n",
        "#### 1 ",
        "٤",
        "a\u0315\u0300",
        "\u0315\u0300",
        "don't",
        "+",
        "'",
        "北",
    ],
)
@pytest.mark.slow
def test_time_grows_with_the_length_of_a_text(piece):
    """Compares the time of a text with that of one 16 times as long: 16 when linear, 256 when quadratic."""
    scorers = number_match(), contains(), text_match(preset="squad"), text_match(preset="strict")

    def measure(length):
        text = (piece * length)[:length]
        sample, start = Sample("?", f"{text[: length // 2]} 1"), time.thread_time()
        for scorer in scorers:
            scorer(Answer(text=text), sample)
        return time.thread_time() - start

    measure(100)
    assert min(measure(32_000) for _ in range(3)) < 64 * max(min(measure(2_000) for _ in range(3)), 0.001)
