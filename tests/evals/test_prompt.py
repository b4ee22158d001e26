"""Prompt templates are plain look-ups, filled once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.canonical_json import sha256_of
from llmkit.errors import LLMEvaluationError
from llmkit.evals import Sample
from llmkit.evals.prompt import Template, as_messages, render
from llmkit.evals.tasks.variant import hash_variant
from llmkit.types import Message


def filled(template, sample):
    return Template.parse(template).render(sample)


def test_text_goes_in_as_it_is_and_anything_else_as_json():
    sample = Sample({"text": "Grüße {x}", "n": 2.5, "tags": ["a"], "ok": True}, metadata={"lang": "de"})
    assert filled("{text}|{n}|{tags}|{input[ok]}|{metadata[lang]}", sample) == 'Grüße {x}|2.5|["a"]|true|de'
    assert filled("{input}", Sample({"a": "ü"})) == '{"a": "ü"}'
    assert filled('{{"label": 1}} {input}', Sample("x")) == '{"label": 1} x'


def test_an_object_may_have_a_field_called_input():
    assert filled("{input[input]}", Sample({"input": "x"})) == "x"


@given(st.text(), st.text())
def test_literal_text_and_input_come_through_unchanged(text, content):
    template = text.replace("{", "{{").replace("}", "}}") + "{input}"
    assert filled(template, Sample(content)) == text + content


@pytest.mark.parametrize(
    "template",
    ["{", "}", "{}", "{0.x}", "{input.__class__}", "{input!r}", "{input:>9}", "{input[a][b]}", "{ input }", "{a{b}}"],
)
def test_anything_but_a_plain_field_is_refused(template):
    with pytest.raises(LLMEvaluationError, match="prompt template cannot be read"):
        Template.parse(template)


@pytest.mark.parametrize("template", ["{missing}", "{input[missing]}", "{metadata[missing]}", "{target}", "{id[x]}"])
def test_a_missing_field_names_what_there_is(template):
    sample = Sample({"q": "x"}, target="secret", id="s1", metadata={"m": 1})
    with pytest.raises(LLMEvaluationError, match=r"sample 's1' has only \{input\}, \{q\}, \{metadata\[m\]\}") as caught:
        filled(template, sample)
    assert "secret" not in str(caught.value)


def test_functions_return_text_or_messages():
    sample = Sample("x", id="s1")
    turn = Message(role="assistant", content="yes")
    assert render(lambda s: s.input, sample, "sys") == (
        Message(role="system", content="sys"),
        Message(role="user", content="x"),
    )
    assert render(lambda s: [turn], sample) == (turn,)


@pytest.mark.parametrize("result", [None, [], ["text"], 3])
def test_a_function_that_returns_something_else_is_refused(result):
    def prompt(sample):
        return result

    with pytest.raises(LLMEvaluationError, match=r"prompt function prompt must return text or messages; got .* 's1'"):
        render(prompt, Sample("x", id="s1"))


def test_a_function_that_fails_is_one_error():
    with pytest.raises(LLMEvaluationError, match=r"failed on sample 's1': KeyError: 'q'"):
        render(lambda sample: sample.metadata["q"], Sample("x", id="s1"))


TURNS = st.lists(st.builds(Message, role=st.sampled_from(["user", "assistant"]), content=st.text()), min_size=1)


@given(st.one_of(st.text(), TURNS.map(tuple)), st.none() | st.text())
def test_a_prompt_has_the_digest_of_the_messages_that_it_becomes(content, system):
    said = [turn.model_dump(mode="json", exclude_defaults=True) for turn in as_messages(content, system)]
    parameters = {"seed": 1}
    assert hash_variant("ollama/m", content, parameters, system) == sha256_of(["ollama/m", said, parameters])[:12]
