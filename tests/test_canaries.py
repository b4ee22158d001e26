"""Planted secrets and personal data come out nowhere but in the stored payload, and with that switched off nowhere."""

from __future__ import annotations

import json
import logging
import sqlite3
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import BaseModel

from llmkit import Session
from llmkit.doctor import examine
from llmkit.errors import LLMConfigurationError, LLMError
from llmkit.evals import Sample, Task, field_match
from llmkit.settings import LLMSettings, load_settings
from llmkit.testing import (
    AnthropicServer,
    Fault,
    GeminiServer,
    OllamaServer,
    OpenAIServer,
    Reply,
    StandInServer,
)
from llmkit.transport.paths.library import load_library
from llmkit.types import LLMRequest

GEMINI, OLLAMA = "gemini/gemini-2.5-flash", "ollama/llama3.2"
LAB, CLAUDE = "lab/m", "claude/m"
GEMINI_KEY = "AIzaSyCanaryCanary0123456789-canary_key"
LAB_KEY, CLAUDE_KEY = "sk-labcanary00000000000000041", "sk-ant-claudecanary0000000000042"
URL_USER, URL_PASSWORD = "canary-user-7731", "canary-pass-7731"

ENVIRONMENT = {
    "OPENAI_API_KEY": "sk-proj-envcanary0000000000001",
    "ANTHROPIC_API_KEY": "sk-ant-envcanary00000000002",
    "GOOGLE_API_KEY": "AIzaSyEnvCanary0000000000000000000000003",
    "OLLAMA_API_KEY": "envcanary-ollama-000004",
    "AWS_SECRET_ACCESS_KEY": "envcanary/aws/secret/0000000000000000005",
    "HF_TOKEN": "hf_envcanary00000000000006",
    "PGPASSWORD": "envcanary-pg-000007",
    "CANARY_LAB_KEY": LAB_KEY,
    "CANARY_CLAUDE_KEY": CLAUDE_KEY,
}
# A proxy or a server that says too much: every one of these is in the body or a header of an error.
SAID_BY_SERVERS = {
    "sk-live_errorcanary0000000000008": "your key sk-live_errorcanary0000000000008 is suspended",
    "ya29.errorcanary-000000000009": "header Authorization: Bearer ya29.errorcanary-000000000009",
    "errorcanary-basic-0010==": "header Authorization: Basic errorcanary-basic-0010==",
    "eyJlcnJvcmNhbmFyeQ.eyJzdWIiOjExfQ.c2lnbmVk": "token eyJlcnJvcmNhbmFyeQ.eyJzdWIiOjExfQ.c2lnbmVk expired",
    "errorcanary-query-0012": "GET https://models.example.org/v1?key=errorcanary-query-0012&q=1 failed",
    "errorcanary-password-0013": "postgresql://svc:errorcanary-password-0013@db.internal/models is down",
    "errorcanary-env-0014": "SERVICE_TOKEN=errorcanary-env-0014 was not accepted",
    "ghp_errorcanary000000000000015": "cannot pull with ghp_errorcanary000000000000015",
    "MIIerrorcanary0016": "-----BEGIN PRIVATE KEY-----\nMIIerrorcanary0016\n-----END PRIVATE KEY-----",
    "root.errorcanary@ops.example.org": "write to root.errorcanary@ops.example.org",
}
HEADER_CANARY = "errorcanary-cookie-0018"
IN_PROMPTS = (
    "ada.promptcanary@maths.example.org",
    "grace+promptcanary@navy.example.mil",
    "+44 20 7946 0919",
    "+1 (415) 555-0120",
    "0049 30 901820 21",
    "DE89 3704 0044 0532 0130 22",
    "GB82WEST12345698765423",
    "FR14 2004 1010 0505 0001 3M02 624",
    "4111 1111 1111 1125",
    "5500-0000-0000-0426",
    "340000000000027",
    "3782 822463 10037",
    "xoxb-promptcanary-000000035",
    "promptcanary-0036-swordfish",
)
IN_ANSWERS = (
    "linus.answercanary@kernel.example.fi",
    "+358 9 4270 0029",
    "FI21 1234 5600 0007 30",
    "6011 0000 0000 0431",
    "sk-answercanary0000000000000032",
    "+358 40 123 0038",
)
KEYS = (GEMINI_KEY, LAB_KEY, CLAUDE_KEY, URL_PASSWORD, *ENVIRONMENT.values())
CANARIES = (*KEYS, *SAID_BY_SERVERS, HEADER_CANARY, *IN_PROMPTS, *IN_ANSWERS)
PROMPT = "Who is behind this? " + "; ".join(IN_PROMPTS).replace("promptcanary-0036", "password=promptcanary-0036")
ANSWER = "It is " + "; ".join(IN_ANSWERS)


class Person(BaseModel):
    name: str


class Seen:
    """Everything that a person, a log or a collector could see, by where it was seen."""

    def __init__(self) -> None:
        self.texts: list[tuple[str, str]] = []

    def add(self, where: str, *values: object) -> None:
        self.texts += [(where, str(value)) for value in values]
        self.texts += [(where, repr(value)) for value in values]

    def leaks(self) -> list[tuple[str, str]]:
        return sorted({(where, canary) for where, text in self.texts for canary in CANARIES if canary in text})


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd) -> Iterator[Seen]:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    reader, spans, traced = InMemoryMetricReader(), InMemorySpanExporter(), TracerProvider()
    metered = MeterProvider([reader])
    traced.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr("opentelemetry.metrics.get_meter", metered.get_meter)
    monkeypatch.setattr("opentelemetry.metrics.get_meter_provider", lambda: metered)
    monkeypatch.setattr("opentelemetry.trace.get_tracer", traced.get_tracer)
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: traced)
    found = Seen()
    with caplog.at_level(logging.DEBUG):
        yield found
    records = caplog.get_records("call")
    found.add("logs", *(record.getMessage() for record in records), *(vars(record) for record in records))
    metrics = reader.get_metrics_data()
    assert metrics is not None
    found.add("metrics", metrics.to_json())
    found.add("spans", *(span.to_json() for span in spans.get_finished_spans()))
    metered.shutdown()
    traced.shutdown()
    printed = capfd.readouterr()
    found.add("printed", printed.out, printed.err)
    assert len(records) > 50
    assert len(spans.get_finished_spans()) > 10
    assert found.leaks() == []


def failures() -> Iterator[Fault | Reply]:
    for said in SAID_BY_SERVERS.values():
        yield Fault.status(400, said, headers={"Set-Cookie": HEADER_CANARY, "X-Debug": HEADER_CANARY})
        yield Fault.status(500, said)
    yield Fault.status(429, f"{PROMPT} is too much")
    yield Fault.status(401, f"the keys {GEMINI_KEY}, {LAB_KEY} and {CLAUDE_KEY} are unknown")
    yield Fault.status(404, PROMPT)
    yield Fault.redirect(f"http://{URL_USER}:{URL_PASSWORD}@127.0.0.1:9/?key={GEMINI_KEY}")
    yield Fault.context_overflow()
    yield Fault.no_candidates()
    yield Fault.malformed()
    yield Fault.html()
    yield Fault.reset()
    yield Fault.cut_at_limit(ANSWER)
    yield Reply(ANSWER, finish_reason="length")


def with_user(url: str) -> str:
    return url.replace("http://", f"http://{URL_USER}:{URL_PASSWORD}@")


def use_everything(session: Session, servers: dict[str, StandInServer], seen: Seen) -> None:
    requests = LLMRequest(messages=PROMPT)
    seen.add("reprs", session, session.settings, requests, session.explain(PROMPT))
    for route, server in servers.items():
        server.script(Reply(ANSWER))
        response = session.chat(PROMPT, route=route, idempotency_key=f"key-{route}", stage="canaries")
        session.chat(PROMPT, route=route)
        session.chat(PROMPT, route=route)
        seen.add("response", response.plan, *response.attempts, *response.warnings)
        server.script(json.dumps({"name": ANSWER}))
        session.extract(Person, PROMPT, route=route)
        server.script(ANSWER)
        seen.add("errors", *errors_of(lambda route=route: session.extract(Person, PROMPT, route=route, reasks=1)))
        for failure in failures():
            server.script(failure)
            seen.add("errors", *errors_of(lambda route=route: session.chat(PROMPT, route=route, use_cache=False)))
    seen.add("errors", *errors_of(lambda: session.chat(PROMPT, no_such_field=GEMINI_KEY)))
    seen.add("errors", *errors_of(lambda: session.chat(PROMPT, temperature=PROMPT)))


def errors_of(call) -> tuple[object, ...]:
    try:
        call()
    except LLMError as error:
        shown = "".join(traceback.format_exception(error))
        return (error, shown, "".join(error._render_traceback_()), error.attempts, error.args)
    return ()


def evaluate(session: Session, servers: dict[str, StandInServer], seen: Seen) -> None:
    for server in servers.values():
        server.script(json.dumps({"name": ANSWER}))
    samples = [Sample(input=PROMPT, target={"name": ANSWER}, id="one"), Sample(input="Who?", target={"name": "x"})]
    task = Task(name="people", dataset=samples, prompt="{input}", output_type=Person, scorers=[field_match("name")])
    report = session.evaluate(task, list(servers), name="canaries")
    seen.add("reports", report, task)


def database_texts(path: Path, payload: set[str]) -> Iterator[tuple[str, str]]:
    connection = sqlite3.connect(path)
    names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for table in names:
        cursor = connection.execute(f"SELECT * FROM {table}")
        columns = [column[0] for column in cursor.description]
        for row in cursor:
            yield from ((f"{table}.{c}", str(v)) for c, v in zip(columns, row, strict=True) if c not in payload)
    connection.close()


@pytest.fixture
def servers() -> Iterator[dict[str, StandInServer]]:
    with (
        OllamaServer() as ollama,
        GeminiServer(api_key=GEMINI_KEY) as gemini,
        OpenAIServer(api_key=LAB_KEY, models=["m"]) as lab,
        AnthropicServer(api_key=CLAUDE_KEY, models=["m"]) as claude,
    ):
        yield {OLLAMA: ollama, GEMINI: gemini, LAB: lab, CLAUDE: claude}


def settings_for(servers: dict[str, StandInServer], **changes: object) -> LLMSettings:
    lab = {"kind": "openai", "model": "m", "api_base": f"{servers[LAB].url}/v1", "api_key_env": "CANARY_LAB_KEY"}
    claude = {"kind": "anthropic", "model": "m", "api_base": with_user(servers[CLAUDE].url)}
    return load_settings(
        endpoints={"lab": lab, "claude": {**claude, "api_key_env": "CANARY_CLAUDE_KEY"}},
        ollama_api_base=with_user(servers[OLLAMA].url),
        gemini_api_base=with_user(servers[GEMINI].url),
        gemini_api_key=GEMINI_KEY,
        max_retries=0,
        cooldown_after_failures=10**6,
        **changes,
    )


def test_there_are_forty_canaries():
    assert len(set(CANARIES)) >= 40


@pytest.mark.slow
@pytest.mark.parametrize("store_payloads", [True, False])
def test_no_canary_is_seen_outside_the_stored_payload(store_payloads, servers, seen):
    settings = settings_for(servers, store_payloads=store_payloads)
    with Session("canaries", settings=settings) as session:
        use_everything(session, servers, seen)
        evaluate(session, servers, seen)
        columns = session.runs(limit=1000).drop(columns=["result_json"], errors="ignore")
        seen.add("frames", columns.to_csv(), session.attempts(limit=1000).to_csv())
    checks = examine(settings)
    seen.add("doctor", *checks, *(json.dumps(check.as_dict()) for check in checks))
    payload = {"result_json", "output_json", "answer_json", "score_details_json"} if store_payloads else set()
    for where, text in database_texts(Path("llmkit.db"), payload):
        seen.add(where, text)
    if not store_payloads:
        for file in Path.cwd().rglob("*"):
            if file.is_file():
                seen.add(f"file {file.name}", file.read_bytes().decode("utf-8", "replace"))
    keys_in_files = [
        (file.name, key) for file in Path.cwd().rglob("*") if file.is_file() for key in KEYS
        if key.encode() in file.read_bytes()
    ]  # fmt: skip
    assert keys_in_files == []
    assert len(columns) > 40


@pytest.mark.parametrize("variable", ["LLM_GEMINI_API_BASE"])
@pytest.mark.parametrize("base", ["http://models.example.org", "http://10.0.0.7:8080", "http://127.0.0.1.example.org"])
def test_a_key_is_never_sent_over_plain_http_to_another_machine(variable, base, monkeypatch):
    monkeypatch.setenv(variable, base)
    with pytest.raises(LLMConfigurationError, match="plain http would show the key"):
        load_settings()


@pytest.mark.parametrize("kind", ["openai", "anthropic", "ollama"])
def test_the_password_of_an_address_is_not_logged_on_the_reference_path(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = {"openai": OpenAIServer, "anthropic": AnthropicServer, "ollama": OllamaServer}[kind]("Hi", models=["m"])
    load_library()  # which sets the level of httpx to WARNING; a user may set it back
    with server, caplog.at_level(logging.DEBUG), caplog.at_level(logging.DEBUG, logger="httpx"):
        base = with_user(server.url) + ("/v1" if kind == "openai" else "")
        lab = {"kind": kind, "model": "m", "api_base": base}
        with Session(endpoints={"lab": lab}, request_path="reference", persist_runs=False) as session:
            assert session.chat(PROMPT, route="lab/m").text == "Hi"
    # LiteLLM masks what its handlers get, and no handler of the user's: so no record of the address may exist.
    assert [record.name for record in caplog.records if record.name == "httpx"] == []
    assert not [text for text in (URL_PASSWORD, *IN_PROMPTS) if text in caplog.text]


def test_the_password_of_an_ollama_address_is_masked_in_previews(tmp_path: Path) -> None:
    with OllamaServer("the password is plain-word-77") as server:
        base = server.url.replace("://", "://me:plain-word-77@")
        database = tmp_path / "masked.db"
        with Session("w", ollama_api_base=base, database_url=f"sqlite:///{database}") as session:
            session.chat("repeat plain-word-77", route=OLLAMA)
    with sqlite3.connect(database) as db:
        previews = db.execute("SELECT request_preview, response_preview FROM llm_runs").fetchone()
    db.close()
    assert previews is not None
    assert all(preview and "plain-word-77" not in preview for preview in previews)
