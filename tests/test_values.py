"""Values, canonical hashes, the error tree, and the chosen public surface."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

import llmkit
from llmkit import errors
from llmkit.calls.request_hash import prompt_sha256
from llmkit.canonical_json import canonical_json
from llmkit.errors import LLMError, describe_validation
from llmkit.evals import Sample, Task, judge
from llmkit.types import (
    LLMProfile,
    LLMRequest,
    LLMResponse,
    Message,
    NamedToolChoice,
    ResponseFormat,
    Route,
    ServedFrom,
    TokenUsage,
    ToolCall,
    ToolDefinition,
    copy_with,
)

ROOT = Path(llmkit.__file__).parents[1]


@pytest.mark.parametrize(("text", "model"), [("ollama/llama3.2", "llama3.2"), ("ollama/hf.co/a/b:q4", "hf.co/a/b:q4")])
def test_a_route_is_split_at_the_first_slash(text: str, model: str) -> None:
    route = Route.parse(text)
    assert (route.model, str(route)) == (model, text)


def test_white_space_around_a_route_is_no_part_of_it() -> None:
    assert Route.parse(" ollama/llama3.2\n") == Route.parse("ollama/llama3.2")


@pytest.mark.parametrize("text", ["llama3.2", "ollama/", "ollama/ ", "a b/gpt", "/gpt", f"{'x' * 65}/gpt", ""])
def test_a_bad_route_says_how_one_is_written(text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        LLMRequest(messages="x", route=text)
    (line,) = describe_validation(caught.value)
    assert "provider/model" in line or "cannot be an endpoint" in line


def test_one_string_to_stop_at_needs_no_list() -> None:
    """So it is the same in `chat`, `extract`, `map`, tasks and judges, which all build a request."""
    assert LLMRequest.model_validate({"messages": "x", "stop": "END"}).stop == ("END",)
    assert Task("t", [Sample("x")], "{input}", str, parameters={"stop": "END"}).parameters == {"stop": "END"}
    assert judge("Right?", parameters={"stop": "END"}).name == "judge"


def test_a_request_shows_no_prompt_in_its_repr() -> None:
    assert "secret" not in repr(LLMRequest(messages="secret", route="ollama/x"))


def test_an_unknown_field_is_an_error() -> None:
    with pytest.raises(ValidationError, match="max_tokens"):
        LLMRequest(messages="x", max_tokens=3)


GOLDEN = {
    "plain": (
        LLMRequest(messages="hi", route="ollama/llama3.2", profile="fast"),
        (
            '{"form":"llmkit-request-1","messages":[{"content":"hi","role":"user"}],'
            '"profile":"fast","route":"ollama/llama3.2"}'
        ),
        "c11ec85faeedf87606c8069601433fc28b177604d5ed5fc09b85870f1ccbe8d8",
    ),
    "full": (
        LLMRequest(
            messages=(Message(role="system", content="Ü"), Message(role="user", content="x")),
            route="gemini/gemini-2.5-flash",
            profile="quality",
            temperature=0.5,
            max_output_tokens=10,
            tools=(ToolDefinition(name="t", parameters={"type": "object", "properties": {"b": {}, "a": {}}}),),
            tool_choice="auto",
            response_format=ResponseFormat(json_schema={"type": "object"}),
            seed=1,
            stop=("END",),
        ),
        (
            '{"form":"llmkit-request-1","max_output_tokens":10,'
            '"messages":[{"content":"\\u00dc","role":"system"},{"content":"x","role":"user"}],"profile":"quality",'
            '"response_format":{"json_schema":{"type":"object"}},"route":"gemini/gemini-2.5-flash","seed":1,'
            '"stop":["END"],"temperature":0.5,"tool_choice":"auto",'
            '"tools":[{"name":"t","parameters":{"properties":{"a":{},"b":{}},"type":"object"}}]}'
        ),
        "0f5967d38ff6fac4a882402c51795c1bcd93bee192d631879c485bbe9849fc53",
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_canonical_hash_has_golden_values(name: str) -> None:
    request, canonical, golden = GOLDEN[name]
    assert hashlib.sha256(canonical.encode()).hexdigest() == golden
    assert prompt_sha256(request) == golden


# Long ones are written by another encoder.
ASCII = st.characters(max_codepoint=127)
TEXTS = st.text(max_size=4) | st.text(ASCII | st.characters(), min_size=1, max_size=6).map(lambda text: text * 150)
MESSAGES = st.one_of(
    st.builds(Message, role=st.sampled_from(["system", "user", "assistant"]), content=TEXTS),
    st.builds(
        Message, role=st.just("tool"), content=st.text(max_size=4), tool_call_id=st.just("1"), tool_name=st.none()
    ),
    st.builds(
        Message, role=st.just("assistant"), tool_calls=st.tuples(st.builds(ToolCall, id=st.just("1"), name=st.text()))
    ),
)
REQUESTS = st.builds(
    LLMRequest,
    messages=st.lists(MESSAGES, min_size=1, max_size=3).map(tuple),
    route=st.sampled_from([None, "ollama/x"]),
    profile=st.sampled_from([None, *LLMProfile]),
    temperature=st.sampled_from([None, 0, 0.5]),
    max_output_tokens=st.sampled_from([None, 1]),
    seed=st.sampled_from([None, 0]),
    stop=st.sampled_from([(), ("",), ("a", "b")]),
    tool_choice=st.sampled_from([None, "none", NamedToolChoice(name="t")]),
    tools=st.sampled_from([(), (ToolDefinition(name="t"), ToolDefinition(name="u", description="d"))]),
    response_format=st.sampled_from([None, ResponseFormat(), ResponseFormat(name="n", json_schema={"a": [1]})]),
)
NOT_HASHED = {"timeout_s", "idempotency_key", "epoch", "use_cache", "constraints", "metadata"}


@given(REQUESTS)
def test_the_canonical_hash_is_of_every_given_field_as_pydantic_dumps_it(request_: LLMRequest) -> None:
    dumped = request_.model_dump(mode="json", exclude_defaults=True, exclude=NOT_HASHED | {"route"})
    route = {"route": str(request_.route)} if request_.route else {}
    canonical = json.dumps({"form": "llmkit-request-1", **dumped, **route}, sort_keys=True, separators=(",", ":"))
    assert prompt_sha256(request_) == hashlib.sha256(canonical.encode()).hexdigest()


@given(TEXTS)
@example("".join(map(chr, range(0x7F))) * 2)
@example("a\x7f" * 200)
@example("\u00e9\ud800" * 200)
def test_canonical_text_is_that_of_json(text: str) -> None:
    assert canonical_json(text) == json.dumps(text)


CHANGES = {
    "messages": "other",
    "route": "ollama/other",
    "profile": "quality",
    "temperature": 0.0,
    "max_output_tokens": 5,
    "tools": (ToolDefinition(name="t"),),
    "tool_choice": "none",
    "response_format": ResponseFormat(),
    "seed": 0,
    "stop": ("x",),
}


@pytest.mark.parametrize("field", CHANGES)
def test_a_change_of_what_changes_the_output_changes_the_hash(field: str) -> None:
    base = {"messages": "hi", "route": "ollama/x", "profile": "fast"}
    assert prompt_sha256(LLMRequest(**base)) != prompt_sha256(LLMRequest(**base | {field: CHANGES[field]}))


@given(st.dictionaries(st.text(max_size=5), st.integers(), max_size=5), st.randoms())
def test_the_order_of_a_dictionary_and_metadata_change_nothing(schema: dict[str, int], random: object) -> None:
    items = list(schema.items())
    random.shuffle(items)
    one = LLMRequest(messages="x", response_format=ResponseFormat(json_schema=schema), metadata={"a": 1})
    two = LLMRequest(messages="x", response_format=ResponseFormat(json_schema=dict(items)), timeout_s=3)
    assert prompt_sha256(one) == prompt_sha256(two)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_canonical_json_is_ascii_and_means_the_same(value: object) -> None:
    text = canonical_json(value)
    assert text.isascii()
    assert json.loads(text) == value


def test_an_unknown_count_makes_an_unknown_sum() -> None:
    total = TokenUsage.total([TokenUsage(input_tokens=1, output_tokens=2), TokenUsage(input_tokens=3)])
    assert (total.input_tokens, total.output_tokens) == (4, None)
    assert TokenUsage.total([]).input_tokens is None


def _error_classes() -> list[type[LLMError]]:
    return [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, LLMError)]


def test_every_error_is_public_and_has_a_code_of_its_own() -> None:
    classes = _error_classes()
    assert {cls.__name__ for cls in classes} == {name for name in errors.__all__ if name.startswith("LLM")}
    assert len({cls.code for cls in classes}) == len(classes)
    assert {cls.__name__ for cls in classes} <= set(llmkit.__all__)


def test_the_drawn_error_tree_is_the_real_one() -> None:
    drawn = {
        parts[0]: (parts[1], "R" in parts[2:3])
        for line in (errors.__doc__ or "").splitlines()
        if (parts := line.replace("│", " ").replace("├──", "").replace("└──", "").split())
        and parts[0].startswith("LLM")
    }
    assert drawn == {cls.__name__: (cls.code, cls.retryable) for cls in _error_classes()}


def test_the_public_surface_is_chosen_and_every_name_loads() -> None:
    assert llmkit.__all__ == sorted(llmkit.__all__)
    for name in llmkit.__all__:
        assert getattr(llmkit, name).__name__ == name if not name.startswith("load") else True
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = llmkit.nothing


def test_every_public_thing_has_a_docstring() -> None:
    assert not [name for name in llmkit.__all__ if not (getattr(llmkit, name).__doc__ or "").strip()]


def test_importing_llmkit_loads_no_heavy_library() -> None:
    heavy = ("litellm", "pandas", "pydantic_ai", "sqlalchemy")
    code = f"import llmkit, sys; llmkit.Session; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_importing_llmkit_alone_loads_not_even_pydantic() -> None:
    code = "import sys, llmkit; print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


def test_no_module_imports_litellm_at_its_top() -> None:
    for path in (ROOT / "llmkit").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "")]
            )
            assert not any((name or "").split(".")[0] == "litellm" for name in names), path


def test_a_copy_with_other_fields_is_what_pydantic_would_copy() -> None:
    value = LLMResponse(text="x", route="ollama/m", warnings=("w",))
    changes = {"served_from": ServedFrom.CACHE, "plan": None, "warnings": ()}
    mine, theirs = copy_with(value, **changes), value.model_copy(update=changes)
    assert (mine, mine.model_fields_set) == (theirs, theirs.model_fields_set)
    assert mine.model_dump_json() == theirs.model_dump_json()
    assert (value.served_from, value.warnings) == (ServedFrom.PROVIDER, ("w",))
    with pytest.raises(ValidationError, match="frozen"):
        mine.text = "y"
