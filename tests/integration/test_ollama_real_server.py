"""What a real Ollama does, as far as llmkit relies on it, and that the stand-in server answers alike.

Needs the build of `make ollama`; skips without it, or fails when `LLMKIT_REQUIRE_OLLAMA=1`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import ollama
import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from llmkit.testing import OllamaServer, StandInServer
    from tests.support.ollama_server import RealOllama

pytestmark = pytest.mark.ollama

MODEL = "gemma-3-270m"
FEW_SHOT = """\
Review: I loved it. -> positive
Review: Terrible. -> negative
Review: A joy from start to end. -> positive
Review: A waste of time. -> negative
Review: {} ->"""
LABEL_SCHEMA = {
    "type": "object",
    "properties": {"label": {"type": "string", "enum": ["positive", "negative"]}},
    "required": ["label"],
}
TOOL = {
    "type": "function",
    "function": {"name": "now", "description": "The time.", "parameters": {"type": "object", "properties": {}}},
}


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


@pytest.fixture
def client(real_ollama: RealOllama) -> Iterator[ollama.Client]:
    with ollama.Client(real_ollama.url, trust_env=False) as client:
        yield client


# --- What the real one does, seen through the official client ---------------------------------------------------------


@pytest.mark.parametrize(("review", "label"), [("Great fun.", "positive"), ("Dull and far too long.", "negative")])
def test_a_few_shot_prompt_is_answered(client: ollama.Client, review: str, label: str) -> None:
    reply = client.chat(MODEL, [user(FEW_SHOT.format(review))], options={"stop": ["\n"], "num_predict": 20})
    assert (reply.message.content or "").strip() == label
    assert (reply.model, reply.done, reply.done_reason) == (MODEL, True, "stop")


def test_a_schema_constrains_the_answer(client: ollama.Client) -> None:
    messages = [user("Write a poem about the sea.\n")]
    free = client.chat(MODEL, messages, options={"num_predict": 40})
    bound = client.chat(MODEL, messages, format=LABEL_SCHEMA, options={"num_predict": 40})
    with pytest.raises(json.JSONDecodeError):
        json.loads(free.message.content or "")
    assert json.loads(bound.message.content or "")["label"] in {"positive", "negative"}


def test_prompt_tokens_are_counted_exactly(client: ollama.Client) -> None:
    """Every further block of the same words adds the same number, whether or not the prompt's beginning was cached."""
    counts = [
        client.chat(MODEL, [user("one two three four " * blocks)], options={"num_predict": 1}).prompt_eval_count
        for blocks in (1, 2, 5, 5)
    ]
    first, second, fifth, again = (count or 0 for count in counts)
    assert second - first == 4
    assert fifth - second == 12
    assert again == fifth


def test_generated_tokens_are_counted_exactly(client: ollama.Client) -> None:
    chunks = list(client.chat(MODEL, [user("one two three")], stream=True, options={"num_predict": 12}))
    *pieces, last = chunks
    assert (last.eval_count, last.done_reason) == (12, "length")
    assert len(pieces) == 12  # a chunk a token, for plain ASCII


def test_a_prompt_beyond_the_context_is_cut_without_a_word(client: ollama.Client) -> None:
    reply = client.chat(MODEL, [user("one two three four " * 200)], options={"num_ctx": 256, "num_predict": 2})
    assert reply.prompt_eval_count == 256
    assert set(reply.model_dump(exclude_none=True)) == set(
        client.chat(MODEL, [user("one two")], options={"num_predict": 2}).model_dump(exclude_none=True)
    )


def _prompt_count(client: ollama.Client, messages: list[dict[str, str]], num_ctx: int) -> int:
    options = {"num_ctx": num_ctx, "num_predict": 1}
    try:
        return client.chat(MODEL, messages, options=options).prompt_eval_count or 0
    except ollama.ResponseError as error:
        # Seen once in a hundred changes of the window on a busy machine: its runner dies, and the next call starts one.
        if "runner process has terminated" not in str(error):
            raise
        return client.chat(MODEL, messages, options=options).prompt_eval_count or 0


def test_ollama_drops_messages_silently(client: ollama.Client) -> None:
    """Then the count is *below* the context's size: only a comparison with what was sent can tell."""
    messages = [user("one two three four " * 10) for _ in range(10)]
    counts = [_prompt_count(client, messages, num_ctx) for num_ctx in (2048, 64)]
    assert counts[0] > 400
    assert 40 <= counts[1] < 64


def test_an_unknown_model_is_404(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="not found") as caught:
        client.chat("nobody-made-this", [user("hello")])
    assert caught.value.status_code == 404


def test_tools_on_a_model_without_them_are_400(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="does not support tools") as caught:
        client.chat(MODEL, [user("What time is it?")], tools=[TOOL])
    assert caught.value.status_code == 400


def test_show_tells_capabilities_and_context_length(client: ollama.Client) -> None:
    details = client.show(MODEL)
    assert details.capabilities == ["completion"]
    assert details.modelinfo is not None
    assert details.modelinfo["gemma3.context_length"] == 32768


@pytest.mark.parametrize("stream", [True, False])
def test_closing_the_connection_stops_the_generation(interrupted_ollama: RealOllama, stream: bool) -> None:
    body = {"model": MODEL, "messages": [user("one two three")], "stream": stream, "options": {"num_predict": 4000}}
    with httpx.Client(base_url=interrupted_ollama.url, trust_env=False, timeout=60) as http:
        if stream:
            with http.stream("POST", "/api/chat", json=body) as reply:
                pieces = reply.iter_lines()  # kept, because its end would close the connection
                next(pieces)
                wait_until(lambda: cpu_share(interrupted_ollama) > 0.1, "it does not generate")
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post("/api/chat", json=body, timeout=3)
    wait_until(lambda: cpu_share(interrupted_ollama) < 0.05, "it still generates for nobody")


def wait_until(condition: Callable[[], bool], complaint: str, within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, complaint
        time.sleep(0.02)


def cpu_share(server: RealOllama, over_s: float = 0.3) -> float:
    """The cores that the server and its runners use."""
    before, started = cpu_seconds(server), time.monotonic()
    time.sleep(over_s)
    return (cpu_seconds(server) - before) / (time.monotonic() - started)


def cpu_seconds(server: RealOllama) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in server.processes())


# --- Our handling of it ----------------------------------------------------------------------------------------------


def test_kill_leaves_nothing_and_restart_brings_it_back(own_ollama: RealOllama) -> None:
    say_a_word(own_ollama)
    processes = own_ollama.processes()
    assert len(processes) == 2  # the server and a runner with the model in it
    own_ollama.kill()
    assert not any(map(is_alive, processes))
    with pytest.raises(ConnectionError):
        say_a_word(own_ollama)
    own_ollama.restart()
    say_a_word(own_ollama)


def say_a_word(server: RealOllama) -> None:
    with ollama.Client(server.url, trust_env=False) as client:
        assert client.chat(MODEL, [user("hello")], options={"num_predict": 1}).done


def test_its_models_can_be_changed_without_harm_to_the_build(own_ollama: RealOllama) -> None:
    with ollama.Client(own_ollama.url, trust_env=False) as client:
        client.create("another", from_=MODEL, parameters={"seed": 7})
        assert {model.model for model in client.list().models} == {"another:latest", f"{MODEL}:latest"}
        client.delete(MODEL)
        client.delete("another")
    blobs = [blob.stat().st_size for blob in (own_ollama.folder / "models" / "blobs").iterdir()]
    assert max(blobs) > 200_000_000


ORPHAN = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import httpx
from tests.support.ollama_server import RealOllama
server = RealOllama(Path(sys.argv[2])).__enter__()
messages = [{"role": "user", "content": "one"}]
body = {"model": server.model, "stream": False, "messages": messages, "options": {"num_predict": 1}}
httpx.post(server.url + "/api/chat", json=body, timeout=60, trust_env=False).raise_for_status()
print(*[process.pid for process in server.processes()], flush=True)
time.sleep(600)
"""


def test_it_dies_with_the_test_process(real_ollama_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", ORPHAN, str(Path(__file__).parents[2]), str(real_ollama_folder)]
    env = os.environ | {"TMPDIR": str(tmp_path)}  # it will not be there to tidy up
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as owner:
        assert owner.stdout is not None
        processes = [psutil.Process(int(pid)) for pid in owner.stdout.readline().split()]
        owner.kill()
    assert len(processes) == 2
    wait_until(lambda: not any(map(is_alive, processes)), "the server outlived the process that started it")


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# --- The stand-in, field by field ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ask:
    """A request that both servers get; in the (last) answer, the fields `same` agree in value, not only in type."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    same: tuple[str, ...] = ()
    after: Ask | None = None


def chat(*messages: dict[str, str], same: str = "", **body: Any) -> Ask:
    filled = {"model": MODEL, "messages": messages or [user(FEW_SHOT.format("Great fun."))], "stream": False}
    values = ("model", "message.role", "done", *same.split())
    return Ask("POST", "/api/chat", filled | {"options": {"num_predict": 40}} | body, values)


LONG = user("one two three four " * 400)
CUT = {"num_predict": 2}
SMALL = {"num_ctx": 128, "num_predict": 2}
NOBODY = "nobody-made-this"
ASKED = {
    "chat": chat(),
    "chat, stopped": chat(options={"num_predict": 40, "stop": ["\n"]}, same="done_reason"),
    "chat, schema": chat(format=LABEL_SCHEMA, same="done_reason"),
    "chat, any JSON": chat(format="json"),
    "chat, streamed": chat(stream=True, same="message.content"),
    "chat, streamed by default": Ask(
        "POST", "/api/chat", {"model": MODEL, "messages": [user("a b c")], "options": CUT}
    ),
    "chat, streamed, schema": chat(stream=True, format=LABEL_SCHEMA, same="done_reason message.content"),
    "chat, cut at the limit": chat(options=CUT, same="done_reason eval_count"),
    "chat, streamed, cut at the limit": chat(stream=True, options=CUT, same="done_reason eval_count message.content"),
    "chat, prompt cut": chat(LONG, options=SMALL, same="prompt_eval_count"),
    "chat, messages dropped": chat(LONG, LONG, user("one two"), options=SMALL),
    "chat, prompt not to be cut": chat(LONG, options=SMALL, truncate=False),
    "chat, logprobs": chat(options=CUT, logprobs=True),
    "chat, streamed, logprobs": chat(options=CUT, logprobs=True, top_logprobs=2, stream=True),
    "chat, nothing said": Ask(
        "POST", "/api/chat", {"model": MODEL, "stream": False}, ("done_reason", "message.content")
    ),
    "chat, unknown model": chat(model=NOBODY),
    "chat, streamed, unknown model": chat(model=f"{NOBODY}:1b", stream=True),
    "chat, no model": Ask("POST", "/api/chat", {"messages": [user("one")]}),
    "chat, tools on a model without them": chat(tools=[TOOL]),
    "chat, streamed, tools on a model without them": chat(tools=[TOOL], stream=True),
    "tags": Ask("GET", "/api/tags", same=("models.0.name", "models.0.model")),
    "show": Ask("POST", "/api/show", {"model": MODEL}, same=("capabilities",)),
    "show, unknown model": Ask("POST", "/api/show", {"model": NOBODY}),
    "show, no model": Ask("POST", "/api/show", {}),
    "ps": Ask("GET", "/api/ps", same=("models.0.name", "models.0.model"), after=chat()),
    "version": Ask("GET", "/api/version"),
    "root": Ask("GET", "/"),
    "no such path": Ask("GET", "/api/nothing-here"),
}

# What depends on the weights and not on the wire: the stand-in may leave these fields out, and may not add to them.
OF_THE_WEIGHTS = re.compile(
    r"model_info\.(?!general\.architecture$|general\.parameter_count$|<architecture>\.context_length$)"
)
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
SHA256 = re.compile(r"[0-9a-f]{64}")


@pytest.fixture(scope="module")
def stand_in() -> Iterator[OllamaServer]:
    from llmkit.testing import OllamaModel, OllamaServer

    model = OllamaModel(
        MODEL, family="gemma3", context_length=32768, capabilities=("completion",), parameters={"num_thread": 1}
    )
    with OllamaServer(models=[model]) as server:
        yield server


@pytest.mark.parametrize("name", ASKED)
def test_the_stand_in_answers_alike(real_ollama: RealOllama, stand_in: OllamaServer, name: str) -> None:
    real, ours = send(real_ollama.url, ASKED[name]), send(stand_in.url, ASKED[name])
    assert (ours.status_code, ours.headers["content-type"]) == (real.status_code, real.headers["content-type"])
    if "json" not in real.headers["content-type"]:
        assert ours.text == real.text
        return
    *real_pieces, real_last = lines(real)
    *our_pieces, our_last = lines(ours)
    assert shape(our_pieces) == shape(real_pieces)
    assert shape(our_last) == without_weights(shape(real_last), unless_in=shape(our_last))
    same = (*ASKED[name].same, "error")
    assert [at(our_last, path) for path in same] == [at(real_last, path) for path in same]


COMPATIBLE = {
    "completion": {"max_tokens": 2},
    "completion, streamed": {"max_tokens": 2, "stream": True, "stream_options": {"include_usage": True}},
    "completion, schema": {
        "max_tokens": 40,
        "response_format": {"type": "json_schema", "json_schema": {"name": "label", "schema": LABEL_SCHEMA}},
    },
    "completion, logprobs": {"max_tokens": 2, "logprobs": True, "top_logprobs": 2},
    "completion, tools on a model without them": {"tools": [TOOL]},
    "completion, unknown model": {"model": NOBODY},
    "completion, no messages": {"messages": []},
    "message": {"max_tokens": 2},
    "message, streamed": {"max_tokens": 2, "stream": True},
    "message, unknown model": {"model": NOBODY, "max_tokens": 2},
    "message, no limit": {},
}


@pytest.fixture(scope="module")
def compatible() -> Iterator[dict[str, StandInServer]]:
    """Stand-ins for the two other protocols that a real Ollama speaks."""
    from llmkit.testing import AnthropicServer, OpenAIModel, OpenAIServer

    model = OpenAIModel(MODEL, capabilities=("json_schema", "json_object", "logprobs"))
    with OpenAIServer(models=[model]) as openai, AnthropicServer(models=[MODEL]) as anthropic:
        yield {"completion": openai, "message": anthropic}


@pytest.mark.parametrize("name", COMPATIBLE)
def test_what_it_answers_in_other_protocols_is_part_of_the_stand_ins_answer(
    real_ollama: RealOllama, compatible: dict[str, StandInServer], name: str
) -> None:
    kind = name.partition(",")[0]
    path = "/v1/chat/completions" if kind == "completion" else "/v1/messages"
    body = {"model": MODEL, "messages": [user("one two three")], "temperature": 0} | COMPATIBLE[name]
    ask = Ask("POST", path, body)
    real, ours = send(real_ollama.url, ask), send(compatible[kind].url, ask)
    assert ours.status_code == real.status_code
    assert ours.headers["content-type"].partition(";")[0] == real.headers["content-type"].partition(";")[0]
    expected, found = shape(lines(real)), shape(lines(ours))
    # A null may stand for any type: Ollama's errors have no codes.
    given = {path: kinds for path, kinds in expected.items() if kinds != ["NoneType"]}
    different = {path: kinds for path, kinds in given.items() if not {*kinds} & {*found.get(path, ())}}
    assert different == {}


def test_the_stand_in_cuts_long_prompts_alike(real_ollama: RealOllama, stand_in: OllamaServer) -> None:
    """Whole messages are dropped first, so less than the context is left; one message is cut to exactly the context."""
    for server in (real_ollama, stand_in):
        dropped = lines(send(server.url, ASKED["chat, messages dropped"]))[-1]["prompt_eval_count"]
        cut = lines(send(server.url, ASKED["chat, prompt cut"]))[-1]["prompt_eval_count"]
        assert (cut, dropped < 10) == (128, True), server


def send(url: str, ask: Ask) -> httpx.Response:
    if ask.after is not None:
        send(url, ask.after)
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
        headers = {"anthropic-version": "2023-06-01"} if ask.path == "/v1/messages" else {}
        return http.request(ask.method, ask.path, json=ask.body, headers=headers)


def lines(reply: httpx.Response) -> list[Any]:
    """Return the JSON values of an answer: one, or those of a stream, in lines or in events."""
    texts = [line.removeprefix("data: ") for line in reply.text.splitlines() if not line.startswith("event: ")]
    return [json.loads(text) for text in texts if text and text != "[DONE]"]


def shape(value: Any) -> dict[str, list[str]]:
    """Return the types found at each path; list items share `...[]`, a model's own prefix is `<architecture>`."""
    found: dict[str, set[str]] = {}
    for path, kind in walk(value, ""):
        found.setdefault(path.lstrip("."), set()).add(kind)
    return {path: sorted(kinds) for path, kinds in sorted(found.items())}


def walk(value: Any, path: str) -> Iterator[tuple[str, str]]:
    yield path, kind_of(value)
    if isinstance(value, dict):
        prefix = f"{value.get('general.architecture')}."
        for key, item in value.items():
            name = key.replace(prefix, "<architecture>.", 1) if key.startswith(prefix) else key
            yield from walk(item, f"{path}.{name}")
    if isinstance(value, list):
        for item in value:
            yield from walk(item, f"{path}[]")


def kind_of(value: Any) -> str:
    if isinstance(value, str):
        return "timestamp" if TIMESTAMP.fullmatch(value) else "sha256" if SHA256.fullmatch(value) else "str"
    return type(value).__name__


def without_weights(real: dict[str, list[str]], *, unless_in: dict[str, list[str]]) -> dict[str, list[str]]:
    return {path: kinds for path, kinds in real.items() if path in unless_in or not OF_THE_WEIGHTS.match(path)}


def at(value: Any, path: str) -> Any:
    """Return what is at a dotted path, None where it ends early."""
    for step in path.split("."):
        value = value.get(step) if isinstance(value, dict) else value[int(step)] if isinstance(value, list) else None
    return value
