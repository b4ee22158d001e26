"""The whole of llmkit on real models: a real Ollama, and the embedded one on the same weights."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmkit import LLMContextOverflow, LLMModelNotFound, LLMUnavailable, LLMUnsupported, Session
from llmkit.doctor import CheckState, examine
from llmkit.evals import Progress, load_tasks
from llmkit.local_model.models import find_local_model
from llmkit.settings import load_settings
from llmkit.types import ToolDefinition
from tests.support.ollama_server import RealOllama

TASK = Path(__file__).parents[2] / "evals" / "sentiment" / "task.py"
SHOTS = "apple: red\nbanana: yellow\ngrass: green\ncoal: black\nsnow:"


@pytest.fixture
def on_ollama(real_ollama: RealOllama) -> Iterator[Session]:
    with Session("real", ollama_api_base=real_ollama.url, ollama_model=real_ollama.model) as session:
        yield session


@pytest.fixture
def on_local() -> Iterator[Session]:
    with Session("real", max_retries=0) as session:
        yield session


def _label(session: Session, route: str) -> str:
    (task,) = load_tasks(TASK)
    sample = task.load().samples[0]
    prompt = task.prompt.format(input=sample.input)
    return session.extract(task.output_type, prompt, route=route, temperature=0, max_output_tokens=64).label


def _accuracy(session: Session, route: str) -> float:
    (task,) = load_tasks(TASK)
    report = session.evaluate(task, [route], name="small", limit=4, progress=False)
    assert report.counts["SUCCEEDED"] == 4
    summary = report.summary().iloc[0]
    assert summary.input_tokens > 4 * 50
    return float(summary["mean"])


@pytest.mark.ollama
def test_chat_on_a_real_ollama_is_recorded_with_exact_counts(on_ollama: Session, real_ollama: RealOllama) -> None:
    answer = on_ollama.chat(SHOTS, route=f"ollama/{real_ollama.model}", max_output_tokens=4, temperature=0)
    assert "white" in answer.text.lower()
    assert answer.usage.output_tokens <= 4
    assert not answer.usage.estimated
    row = on_ollama.runs().iloc[0]
    assert (row.input_tokens, row.status) == (answer.usage.input_tokens, "SUCCEEDED")


@pytest.mark.ollama
def test_extraction_on_a_real_ollama_is_constrained_to_the_schema(on_ollama: Session, real_ollama: RealOllama) -> None:
    assert _label(on_ollama, f"ollama/{real_ollama.model}") in {"positive", "negative"}


@pytest.mark.ollama
@pytest.mark.slow
def test_a_small_evaluation_on_a_real_ollama(on_ollama: Session, real_ollama: RealOllama) -> None:
    assert _accuracy(on_ollama, f"ollama/{real_ollama.model}") >= 0.75


@pytest.mark.ollama
def test_an_unknown_model_of_a_real_ollama_says_how_to_get_it(on_ollama: Session) -> None:
    with pytest.raises(LLMModelNotFound, match="ollama pull no-such-model"):
        on_ollama.chat("x", route="ollama/no-such-model")


@pytest.mark.ollama
def test_doctor_tells_what_ollama_list_and_ollama_show_tell(real_ollama: RealOllama) -> None:
    settings = load_settings(ollama_api_base=real_ollama.url, ollama_model=real_ollama.model)
    checks = {check.name: check for check in examine(settings)}
    assert (checks["ollama"].state, checks["ollama"].route) == (CheckState.OK, f"ollama/{real_ollama.model}")
    assert real_ollama.command("--version").split()[-1] in checks["ollama"].detail
    rows = [line.split() for line in real_ollama.command("list").splitlines()[1:]]
    told = {name.removeprefix("ollama/"): check for name, check in checks.items() if name.startswith("ollama/")}
    assert {name: check.facts["digest"]["value"][:12] for name, check in told.items()} == {
        row[0]: row[1] for row in rows
    }
    model = told[f"{real_ollama.model}:latest"]
    shown = real_ollama.command("show", real_ollama.model)
    (window,) = re.findall(r"context length\s+(\d+)", shown)
    assert model.facts["context_tokens"]["value"] == int(window)
    assert model.facts["tools"]["value"] is ("tools" in shown.partition("Capabilities")[2].split())
    assert {fact["source"] for fact in model.facts.values()} == {"reported"}


@pytest.mark.ollama
def test_real_ollama_enforces_schemas(on_ollama: Session, real_ollama: RealOllama) -> None:
    """The digest of the model is recorded."""
    facts = on_ollama.probe(f"ollama/{real_ollama.model}")
    assert facts.json_schema is not None
    assert (facts.json_schema.value, facts.json_schema.source) == (True, "probed")
    assert facts.digest is not None
    assert facts.digest.value.startswith(real_ollama.command("list").splitlines()[1].split()[1])
    assert set(on_ollama.attempts().model_digest) == {facts.digest.value}


@pytest.mark.ollama
def test_real_model_without_tools_is_refused(on_ollama: Session, real_ollama: RealOllama) -> None:
    """Nothing is sent."""
    tool = ToolDefinition(name="now")
    with pytest.raises(LLMUnsupported, match=r"cannot call tools \(reported\)") as caught:
        on_ollama.chat("What time is it?", route=f"ollama/{real_ollama.model}", tools=(tool,))
    assert caught.value.attempts == ()


@pytest.mark.ollama
@pytest.mark.slow
def test_rebuilt_real_model_is_flagged(own_ollama: RealOllama, tmp_path: Path) -> None:
    """The model is rebuilt under its name in the middle of a run."""
    route = f"ollama/{own_ollama.model}"
    modelfile = tmp_path / "Modelfile"
    modelfile.write_text(f"FROM {own_ollama.model}\nPARAMETER seed 7\n", encoding="utf-8")
    (task,) = load_tasks(TASK)
    with Session("real", ollama_api_base=own_ollama.url, facts_ttl_s=0.01) as session:
        session.evaluate(task, [route], name="run", limit=2, progress=False)
        own_ollama.command("create", own_ollama.model, "-f", str(modelfile))
        report = session.evaluate(task, [route], name="run", limit=4, progress=False)
        assert session.attempts().model_digest.nunique() == 2
    assert any("changed during the run" in note for note in report.notes), report.notes


@pytest.mark.ollama
@pytest.mark.slow
@pytest.mark.usefixtures("interrupted_ollama")
def test_a_cancelled_call_frees_the_real_ollama_at_once(on_ollama: Session, real_ollama: RealOllama) -> None:
    route = f"ollama/{real_ollama.model}"
    on_ollama.chat(SHOTS, route=route, max_output_tokens=1)

    async def cancel_a_long_one() -> None:
        task = asyncio.create_task(on_ollama.achat("Once upon a time", route=route, max_output_tokens=2000))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel_a_long_one())
    answer = on_ollama.chat(SHOTS, route=route, max_output_tokens=2, timeout_s=100, seed=1)
    assert answer.billed
    assert set(on_ollama.runs().error_code.dropna()) == {"cancelled"}


@pytest.mark.ollama
def test_a_prompt_beyond_a_real_models_own_window_is_refused(on_ollama: Session, real_ollama: RealOllama) -> None:
    with pytest.raises(LLMContextOverflow, match="32768 tokens; nothing was sent"):
        on_ollama.chat("word " * 60_000, route=f"ollama/{real_ollama.model}")


@pytest.mark.ollama
@pytest.mark.slow
def test_killed_ollama_is_one_error(own_ollama: RealOllama) -> None:
    """A restarted Ollama is used again."""
    route = f"ollama/{own_ollama.model}"
    with Session("real", ollama_api_base=own_ollama.url, max_retries=0, cache_enabled=False) as session:
        session.chat(SHOTS, route=route, max_output_tokens=1)
        own_ollama.kill()
        # One for each connection that was open, and then the one that says what to do.
        for _ in range(3):
            with pytest.raises(LLMUnavailable, match=r"broke off the connection|ollama serve") as caught:
                session.chat(SHOTS, route=route, max_output_tokens=1)
            if "ollama serve" in str(caught.value):
                break
        assert "ollama serve" in str(caught.value)
        own_ollama.restart()
        assert session.chat(SHOTS, route=route, max_output_tokens=1).billed


@pytest.mark.local
@pytest.mark.filterwarnings("ignore:.*is a small base model")  # the examples are in the text
def test_chat_and_extraction_on_the_embedded_model(on_local: Session) -> None:
    answer = on_local.chat(SHOTS, route="local/gemma-3-270m", max_output_tokens=4, temperature=0)
    assert "white" in answer.text.lower()
    assert _label(on_local, "local/gemma-3-270m") in {"positive", "negative"}
    assert len(on_local.runs()) == 2
    assert set(on_local.attempts().model_digest) == {find_local_model("gemma-3-270m").sha256}


@pytest.mark.local
@pytest.mark.slow
def test_a_small_evaluation_on_the_embedded_model(on_local: Session) -> None:
    assert _accuracy(on_local, "local/gemma-3-270m") >= 0.75


@pytest.mark.local
@pytest.mark.ollama
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_ollama_costs_only_the_wait(own_ollama: RealOllama) -> None:
    """Ollama is killed in the middle of a comparison and started again."""
    routes = ["local/gemma-3-270m", f"ollama/{own_ollama.model}"]
    (task,) = load_tasks(TASK)
    killed = []

    def kill_once(progress: Progress) -> None:
        if progress.sent >= 4 and not killed:
            own_ollama.kill()
            killed.append(progress.done)
            threading.Timer(1.0, own_ollama.restart).start()

    with Session("real", ollama_api_base=own_ollama.url, max_retries=0, cooldown_s=1) as session:
        report = session.evaluate(task, routes, name="servers", limit=4, concurrency=2, progress=kill_once)
        attempts = session.attempts()
    assert killed
    assert report.counts["SUCCEEDED"] == 8
    answered = attempts[attempts.status == "SUCCEEDED"]
    assert answered.pipeline_run_id.is_unique
    assert len(answered) == 8
    assert set(attempts.error_code.dropna()) <= {"unavailable", "malformed_reply"}
    assert len(report.compare(*routes)) == 1
