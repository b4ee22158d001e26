"""Replay: recorded from the store, redacted, found by what was asked, and told apart when something differs."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from pydantic import BaseModel

from llmkit import (
    LLMBadRequest,
    LLMConfigurationError,
    LLMModelNotFound,
    LLMNoRecording,
    LLMUnavailable,
    ResponseFormat,
    Session,
)
from llmkit.cli.main import run_command
from llmkit.replay.cassette import Cassette, redact_answer
from llmkit.testing import Fault, GeminiServer, OllamaServer, Reply
from llmkit.types import WARM_UP_STAGE


class City(BaseModel):
    name: str
    mail: str


ANSWER = '{"name": "Rome", "mail": "ada@example.com"}'
PIN = {"route": "ollama/llama3.2"}


def _use(session: Session) -> list[str]:
    """What a notebook would do."""
    said = [session.chat("What is churn?", temperature=0.5).text]
    said.append(session.extract(City, "Rome").name)
    said.append(str(session.map(City, ["Rome", None, "Bern"], progress=False, **PIN)["name"].tolist()))
    talk = session.conversation(system="Be brief.")
    said += [talk.say("Call me on +49 170 1234567").text, talk.say("And?").text]
    return said


@pytest.fixture
def recorded() -> tuple[Path, list[str]]:
    """A cassette, and what was said when it was recorded; the server is gone."""
    with OllamaServer(lambda request: Reply(ANSWER if request.json.get("format") else "an answer")) as ollama:
        with Session("study", ollama_api_base=ollama.url) as session:
            said = _use(session)
        assert run_command(["cassette", "record", "tape.jsonl", "-w", "study"]) == 0
    Path("llmkit.db").rename("recorded.db")
    return Path("tape.jsonl"), said


def test_a_replay_says_the_same_without_a_socket_and_leaves_nothing_behind(
    recorded: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> None:
        raise AssertionError("a socket was opened")

    path, said = recorded
    before = set(Path().iterdir())
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    with Session("elsewhere", replay=path) as session:
        assert _use(session) == said
        usage = session.usage().iloc[0]
        assert (usage["requests"], usage["billed_output_tokens"] > 0) == (6, True)
        assert (session.recordings()["asked"] > 0).all()
    assert set(Path().iterdir()) == before


def test_the_file_is_for_people_and_holds_no_personal_data(recorded: tuple[Path, list[str]]) -> None:
    lines = [json.loads(line) for line in recorded[0].read_text().splitlines()]
    assert lines[0]["form"] == "llmkit-cassette-1"
    assert lines[0]["answered_by"] == ["ollama/llama3.2 (llama3.2)"]
    assert lines[1]["prompt"] == "user: What is churn?"
    assert lines[1]["text"] == "an answer"
    assert lines[1]["parameters"] == {"temperature": 0.5}
    text = recorded[0].read_text()
    assert "1234567" not in text
    assert "ada@example.com" not in text
    assert json.loads(lines[2]["text"]) == {"name": "Rome", "mail": "[email]"}


@pytest.mark.parametrize(
    ("prompt", "parameters", "said"),
    [
        ("What is churn?", {"temperature": 0.7}, "line 2.* differs in temperature: recorded 0.5, asked 0.7"),
        ("What is churn?", {}, "differs in temperature: recorded 0.5, asked nothing"),
        ("What is churn?", {"temperature": 0.5, "seed": 3}, "differs in seed: recorded nothing, asked 3"),
        ("What is churn?", {"temperature": 0.5, **PIN}, "differs in route.*asked 'ollama/llama3.2'"),
        ("What is churn?", {"temperature": 0.5, "profile": "quality"}, "differs in profile"),
        ("What is churn?", {"temperature": 0.5, "epoch": 1}, "differs in epoch"),
        ("What is churn?", {"temperature": 0.5, "response_format": ResponseFormat()}, "differs in response_format"),
        ("What is the churn?", {"temperature": 0.5}, "differs in messages.*is churn.*is the churn"),
    ],
)
def test_a_miss_names_the_first_field_that_differs_from_the_nearest_recording(
    recorded: tuple[Path, list[str]], prompt: str, parameters: dict[str, object], said: str
) -> None:
    with Session("x", replay=recorded[0]) as session, pytest.raises(LLMNoRecording, match=said):
        session.chat(prompt, **parameters)


def test_a_miss_tells_nothing_of_a_secret_in_the_prompt(recorded: tuple[Path, list[str]]) -> None:
    with Session("x", replay=recorded[0]) as session, pytest.raises(LLMNoRecording) as caught:
        session.chat("My key is sk-abcdefghijklmnopqrstuvwx and mail bob@example.com")
    assert "abcdefgh" not in str(caught.value)
    assert "bob@" not in str(caught.value)


def test_a_warm_up_is_no_call_that_a_cassette_lacks() -> None:
    with OllamaServer() as ollama, Session("study", ollama_api_base=ollama.url) as session:
        session.chat("A question", **PIN)
        session.chat("A warm-up", stage=WARM_UP_STAGE, **PIN)
    assert run_command(["cassette", "record", "tape.jsonl", "-w", "study"]) == 0
    assert len(Cassette.read(Path("tape.jsonl")).recordings) == 1
    assert run_command(["cassette", "verify", "tape.jsonl", "-w", "study"]) == 0


def test_what_nothing_asked_for_is_reported_by_the_session_and_by_verify(
    recorded: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    with Session("study", replay=recorded[0], database_url="sqlite:///llmkit.db") as session:
        session.chat("What is churn?", temperature=0.5)
        asked = session.recordings()
    assert asked["asked"].tolist() == [1, 0, 0, 0, 0, 0]
    capsys.readouterr()
    assert run_command(["cassette", "verify", "tape.jsonl", "-w", "study", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told == {"recordings": 6, "calls_without_recording": 0, "unasked_lines": [3, 4, 5, 6, 7]}
    with Session("study", replay=recorded[0], database_url="sqlite:///llmkit.db") as session:
        _use(session)
    assert run_command(["cassette", "verify", "tape.jsonl", "-w", "study"]) == 0


def test_repeats_come_in_the_order_in_which_they_were_recorded() -> None:
    with (
        OllamaServer(["one", "two", Fault.status(404, "model gone")]) as ollama,
        Session("s", ollama_api_base=ollama.url) as session,
    ):
        for _ in range(2):
            session.chat("Again?", use_cache=False)
        with pytest.raises(LLMModelNotFound):
            session.chat("Gone?", **PIN)
    assert run_command(["cassette", "record", "t.jsonl", "-w", "s"]) == 0
    with Session("s", replay="t.jsonl") as session:
        assert [session.chat("Again?", use_cache=False).text for _ in range(3)] == ["one", "two", "two"]
        with pytest.raises(LLMModelNotFound):
            session.chat("Gone?", **PIN)


def test_nobody_is_asked_to_wait_before_a_recorded_failure_is_replayed_again() -> None:
    with OllamaServer(Fault.status(503)) as ollama, Session("s", ollama_api_base=ollama.url, max_retries=0) as session:
        with pytest.raises(LLMUnavailable) as failed:
            session.chat("Down?", **PIN)
        assert failed.value.retry_after_s is None
    assert run_command(["cassette", "record", "t.jsonl", "-w", "s"]) == 0
    with Session("s", replay="t.jsonl") as session:
        with pytest.raises(LLMUnavailable) as replayed:
            session.chat("Down?", **PIN)
        # An evaluation waits for a route that cannot be reached, unless it is told that it need not.
        assert replayed.value.retry_after_s == 0


def test_a_route_without_its_package_or_key_is_replayed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    with GeminiServer("from gemini", api_key="k") as gemini:
        routes = {"gemini_api_base": f"{gemini.url}/v1beta", "gemini_api_key": "k"}
        with Session("s", **routes) as session:
            session.chat("Hi", route="gemini/gemini-2.5-flash")
    assert run_command(["cassette", "record", "t.jsonl", "-w", "s"]) == 0
    with Session("s", replay="t.jsonl") as session:
        assert session.chat("Hi", route="gemini/gemini-2.5-flash").text == "from gemini"


@pytest.mark.filterwarnings("ignore:.*answered, because the first choice:UserWarning")
def test_a_fallback_is_replayed_as_one() -> None:
    with OllamaServer(Fault.status(503)) as ollama, GeminiServer("from gemini", api_key="k") as gemini:
        routes = {"gemini_api_base": f"{gemini.url}/v1beta", "gemini_api_key": "k", "ollama_api_base": ollama.url}
        with Session("s", max_retries=0, **routes) as session:
            assert str(session.chat("Hi").route) == "gemini/gemini-2.5-flash"
    assert run_command(["cassette", "record", "t.jsonl", "-w", "s"]) == 0
    with Session("s", replay="t.jsonl") as session:
        answer = session.chat("Hi")
        assert (answer.text, str(answer.route)) == ("from gemini", "gemini/gemini-2.5-flash")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        ("", "not a cassette"),
        ('{"form": "other"}\n', "not a cassette"),
        ('{"form": "llmkit-cassette-1"}\n{"prompt": 1}\n', "line 2"),
        ('{"form": "llmkit-cassette-1"}\nnot json\n', "line 2"),
    ],
)
def test_a_file_that_is_no_cassette_is_one_error(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "c.jsonl"
    if content is not None:
        path.write_text(content)
    with Session("s", replay=path) as session, pytest.raises(LLMBadRequest, match=said):
        session.chat("x")


def test_record_writes_over_nothing_unless_told_and_says_when_there_is_nothing(
    recorded: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("recorded.db").rename("llmkit.db")
    assert run_command(["cassette", "record", "tape.jsonl", "-w", "study"]) == 2
    assert run_command(["cassette", "record", "tape.jsonl", "-w", "study", "--replace"]) == 0
    assert run_command(["cassette", "record", "other.jsonl", "-w", "nobody"]) == 2
    assert not Path("other.jsonl").exists()


def test_a_session_that_replays_nothing_has_no_recordings() -> None:
    with Session("s") as session, pytest.raises(LLMConfigurationError, match="replay"):
        session.recordings()


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Write to ada@example.com", "Write to [email]"),
        ('{"phone": 4917012345678, "n": [1.5, null]}', '{"phone": 4917012345678, "n": [1.5, null]}'),
        ('["ada@example.com", {"a": "x"}]', '["[email]", {"a": "x"}]'),
        ('{"a" :  "spaced"}', '{"a" :  "spaced"}'),
        ('"ada@example.com"', '"[email]"'),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_an_answer_in_json_stays_json(text: str, clean: str) -> None:
    assert redact_answer(text) == clean


def test_an_empty_cassette_says_so(tmp_path: Path) -> None:
    with (tmp_path / "c.jsonl").open("w") as file:
        Cassette([]).write(file)
    with Session("s", replay=tmp_path / "c.jsonl") as session, pytest.raises(LLMNoRecording, match="empty"):
        session.chat("x")
