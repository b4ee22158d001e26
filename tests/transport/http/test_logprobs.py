"""Log-probabilities: found in the reply, matched to the answer and its fields, and the same on both request paths."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from llmkit import Session
from llmkit.errors import LLMNoRoute, LLMUnsupported
from llmkit.evals import Sample, Task, field_match
from llmkit.providers import TokenLogprob
from llmkit.providers.base import read_token_logprobs
from llmkit.testing import GeminiServer, OllamaServer, OpenAIServer, Reply
from llmkit.testing.gemini import GeminiModel
from llmkit.transport.http.logprobs import MOST_FIELDS, summarize_logprobs

ANSWER = '{"mood": "sad", "size": {"n": 12, "unit": ""}, "tags": ["a", "b"]}'
UNSURE = {"sad": -1.5, "12": -0.5}
KEY = "AIzaSyCanary0123456789-canary_canary"


def tokens(*parts: str | tuple[str, float]) -> list[TokenLogprob]:
    pairs = [(part, -0.1) if isinstance(part, str) else part for part in parts]
    return [TokenLogprob(text.encode(), logprob) for text, logprob in pairs]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-999, 999) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(st.text(st.characters(exclude_characters="."), max_size=3), JSON_VALUES, min_size=1, max_size=4),
    st.data(),
)
def test_a_field_has_the_tokens_that_overlap_its_value(wanted, data):
    """Whatever the tokenizer: one field's tokens are unsure, and no other field is more unsure than that."""
    name = data.draw(st.sampled_from(sorted(wanted)))
    at, text = 0, "{"
    for key, value in wanted.items():
        text += ("" if text == "{" else ", ") + json.dumps(key, ensure_ascii=False) + ": "
        at = len(text.encode()) if key == name else at
        text += json.dumps(value, ensure_ascii=False)
    raw = (text + "}").encode(errors="replace")
    cuts = sorted(data.draw(st.sets(st.integers(1, len(raw) - 1), max_size=8)) | {at, at + 1})
    pieces = [raw[i:j] for i, j in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    found = summarize_logprobs([TokenLogprob(piece, -0.1) for piece in pieces], raw.decode())
    assert found is not None
    assert found.tokens == len(pieces)
    assert found.fields.keys() == {path for path, _value in leaves(wanted)}
    assert all(field.tokens >= 1 for field in found.fields.values())


def leaves(value: dict, prefix: str = ""):
    for name, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from leaves(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, inner


def test_quotes_and_names_are_not_part_of_a_value():
    found = summarize_logprobs(tokens('{"', ("mood", -9), '": "', ("sad", -2), ("!", -1), '"}'), '{"mood": "sad!"}')
    assert (found.min, found.tokens) == (-9, 6)
    assert (found.fields["mood"].mean, found.fields["mood"].min, found.fields["mood"].tokens) == (-1.5, -2, 2)


def test_reasoning_white_space_and_end_marks_are_left_out():
    wrote = tokens(("hm, yes</think>", -7), ("\n\n", -8), ("ye", -0.25), ("s", -0.75), ("<|im_end|>", -9))
    found = summarize_logprobs(wrote, " yes\n")
    assert (found.mean, found.min, found.tokens) == (-0.5, -0.75, 2)


def test_what_cannot_be_found_counts_whole_or_not_at_all():
    cut = [TokenLogprob(b"caf", -1.0), TokenLogprob(b"\xef\xbf\xbd", -2.0)]
    assert summarize_logprobs(cut, "café").mean == -1.5
    assert summarize_logprobs(tokens("a long chain of reasoning " * 9), "42") is None
    assert summarize_logprobs([], "42") is None


@pytest.mark.parametrize(
    "text", ['{"a": 1', '{"a" 1}', "[1, 2]", '{1: "a"}', "{}", "{ }", '{"a": NaN}x', "{" * 5000, '{"a":' * 5000]
)
def test_other_text_has_no_fields_or_those_that_are_there(text):
    assert summarize_logprobs(tokens(text), text).fields.keys() <= {"a"}


def test_hostile_sizes_are_bounded():
    many = json.dumps({str(n): n for n in range(MOST_FIELDS + 1)})
    assert summarize_logprobs(tokens(many), many).fields == {}
    deep = '{"a":' * 300 + "1" + "}" * 300
    assert len(summarize_logprobs(tokens(deep), deep).fields) == 1


@pytest.mark.parametrize("bad", [None, "x", math.nan, -math.inf, math.inf, 0.5, True, [1]])
def test_one_impossible_value_makes_all_unknown(bad):
    entries = [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": bad}]
    assert read_token_logprobs(entries) == ()
    assert read_token_logprobs(entries[:1]) == (TokenLogprob(b"a", -0.5),)


@pytest.mark.parametrize("entries", [None, {}, [None], [{"logprob": -1}], "tokens"])
def test_other_shapes_are_unknown(entries):
    assert read_token_logprobs(entries) == ()


def test_bytes_are_taken_where_they_are_bytes():
    entries = [{"token": "\ufffd", "logprob": 1e-9, "bytes": [195]}, {"token": "é", "logprob": -1, "bytes": [999]}]
    assert read_token_logprobs(entries) == (TokenLogprob(b"\xc3", 0.0), TokenLogprob("é".encode(), -1.0))


class Mood(BaseModel):
    mood: str


@pytest.fixture
def servers():
    reply = Reply('{"mood": "sad"}', logprobs=UNSURE)
    with (
        OllamaServer(reply, version="0.12.11") as ollama,
        GeminiServer(reply, api_key=KEY) as gemini,
        OpenAIServer(reply, api_key=KEY) as openai,
    ):
        yield ollama, gemini, openai


def a_session(servers, **settings) -> Session:
    ollama, gemini, openai = servers
    addresses = {"ollama_api_base": ollama.url, "gemini_api_base": gemini.url, "gemini_api_key": KEY}
    addresses |= {"openai_api_base": openai.api_base, "openai_api_key": KEY}
    return Session("logprobs", **addresses, **settings)


ROUTES = ["ollama/llama3.2", "gemini/gemini-2.5-flash", "openai/gpt-4o-mini"]


@pytest.mark.parametrize("path", ["fast", "reference"])
@pytest.mark.parametrize("route", ROUTES)
def test_both_paths_read_them_and_the_store_keeps_them(servers, route, path):
    with a_session(servers, request_path=path) as session:
        first = session.chat("How?", route=route, logprobs=True)
        again = session.chat("How?", route=route, logprobs=True)
        plain = session.chat("How?", route=route)
        runs = session.runs()
    assert (first.logprobs.min, first.logprobs.fields["mood"].mean) == (-1.5, -1.5)
    assert (again.served_from, again.logprobs) == ("cache", first.logprobs)
    assert (plain.served_from, plain.logprobs) == ("provider", None)
    assert runs["logprob_min"].fillna(0).tolist() == [0, -1.5, -1.5]


def test_samples_have_them_and_so_has_an_exported_run(servers, tmp_path):
    task = Task("moods", [Sample("Rain.", "sad")], "{input}", Mood, [field_match("mood")])
    with a_session(servers) as session:
        parameters = {"logprobs": True}
        report = session.evaluate(task, ROUTES, name="r", parameters=parameters, progress=False, warm_up=False)
        rows = report.samples()
        file = report.export(tmp_path / "r.parquet")
    with a_session(servers, database_url=f"sqlite:///{tmp_path}/other.db") as other:
        copied = other.import_run(file).samples()
    assert rows["logprob_min"].tolist() == [-1.5] * 3
    assert json.loads(rows["field_logprobs"][0]) == {"mood": {"mean": -1.5, "min": -1.5}}
    assert copied["field_logprobs"].tolist() == rows["field_logprobs"].tolist()


def test_an_older_ollama_sends_none_and_the_answer_says_so(servers):
    servers[0].version = "0.12.5"
    with a_session(servers) as session:
        answer = session.chat("How?", route="ollama/llama3.2", logprobs=True)
    assert answer.logprobs is None
    assert answer.warnings == ("Ollama sent no log-probabilities: update Ollama to 0.12.11 or later.",)


def test_gemini_is_asked_for_them_only_when_its_model_is_named(servers):
    servers[1].models = [GeminiModel("gemini-2.5-flash", logprobs=False)]
    with a_session(servers) as session:
        with pytest.raises(LLMUnsupported, match="Logprobs is not enabled"):
            session.chat("How?", route="gemini/gemini-2.5-flash", logprobs=True)
        only = {"allowed_providers": ["gemini"]}
        with pytest.raises(LLMNoRoute, match="pin it to try"):
            session.chat("How?", constraints=only, logprobs=True)
        assert session.chat("How?", logprobs=True).route.provider == "ollama"
