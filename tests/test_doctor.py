"""The doctor: what it finds, that it names one thing to do for each gap, and that it shows no secret."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmkit import Session, doctor
from llmkit.cli.main import run_command
from llmkit.doctor import EXTRAS, Check, CheckState, examine, usable_routes
from llmkit.providers import PROVIDERS
from llmkit.settings import load_settings
from llmkit.testing import Fault, GeminiServer, OllamaModel, OllamaServer, get_refused_url
from llmkit.transport.http import tls
from llmkit.types import LLMProvider

KEY = "AIzaSyCanary0123456789-canary_canary"


@pytest.fixture
def ollama() -> Iterator[OllamaServer]:
    with OllamaServer(models=[OllamaModel("llama3.2", context_length=8192, digest="d" * 64)]) as server:
        yield server


def checks(probe: bool = False, **settings: object) -> dict[str, Check]:
    found = examine(load_settings(local_model="none-such", **settings), probe=probe)
    return {check.name: check for check in found}


def test_every_pulled_model_is_told_with_context_and_digest(ollama: OllamaServer) -> None:
    found = checks(ollama_api_base=ollama.url)
    assert found["ollama"].route == "ollama/llama3.2"
    model = found["ollama/llama3.2:latest"]
    assert "8,192 tokens (reported)" in model.detail
    assert "dddddddddddd (reported)" in model.detail
    assert "2,019 MB" in model.detail
    assert model.facts["context_tokens"]["value"] == 8192
    assert model.facts["digest"]["value"] == "d" * 64
    assert ollama.call_count == 0


def test_what_is_missing_is_told_with_the_one_thing_to_do() -> None:
    found = checks(
        ollama_api_base=get_refused_url(), gemini_api_key=None, cache_enabled=False, database_url="sqlite:///x/new.db"
    )
    wanted = {
        "ollama": "start it with `ollama serve`, or set LLM_OLLAMA_API_BASE",
        "gemini": "set LLM_GEMINI_API_KEY",
        "cache": "set LLM_CACHE_ENABLED=true",
        "local": "set LLM_LOCAL_MODEL=gemma-3-270m",
    }
    assert {name: found[name].fix for name in wanted} == wanted
    assert all(check.fix is None or "\n" not in check.fix for check in found.values())
    assert not Path("x").exists()


def test_a_model_that_is_not_pulled_is_told_with_how_to_get_it(ollama: OllamaServer) -> None:
    found = checks(ollama_api_base=ollama.url, ollama_model="mistral")
    assert found["ollama"].state is CheckState.ABSENT
    assert found["ollama"].fix == "ollama pull mistral"
    assert found["ollama"].route == "ollama/llama3.2"


@pytest.mark.parametrize("fault", [Fault.html(), Fault.malformed(), Fault.status(500), Fault.reset()])
def test_what_is_no_ollama_is_told_as_none(ollama: OllamaServer, fault: Fault) -> None:
    ollama.script(fault, endpoint="/api/version")
    assert checks(ollama_api_base=ollama.url)["ollama"].state is CheckState.ABSENT


def test_the_extras_are_those_of_the_package() -> None:
    assert set(EXTRAS) == set(importlib.metadata.metadata("llmkit-research").get_all("Provides-Extra") or ())
    requires = {line.split("[")[0] for line in importlib.metadata.requires("llmkit-research") or ()}
    assert requires
    found = checks(ollama_api_base=get_refused_url())
    assert {name for name in found if name.startswith("extra ")} == {f"extra {extra}" for extra in EXTRAS}


def test_a_missing_extra_is_told_and_stops_only_what_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda _name: None)
    found = checks(ollama_api_base=get_refused_url())
    assert (found["extra plot"].state, found["extra plot"].fix) == (
        CheckState.ABSENT,
        "pip install 'llmkit-research[plot]'",
    )
    assert found["extra postgres"].state is CheckState.ABSENT
    needed = {check.name: check for check in doctor._check_extras(load_settings(database_url="postgresql://nobody/x"))}
    assert needed["extra postgres"].state is CheckState.FAILED


def test_a_full_disk_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks(ollama_api_base=get_refused_url())["disk"].state is CheckState.OK
    monkeypatch.setattr(doctor, "LEAST_FREE_BYTES", 10**18)
    full = checks(ollama_api_base=get_refused_url())["disk"]
    assert (full.state, str(full.fix).startswith("llmkit db prune")) == (CheckState.FAILED, True)


def test_no_key_and_no_password_is_shown(ollama: OllamaServer) -> None:
    with GeminiServer(api_key=KEY) as gemini:
        found = checks(
            probe=True,
            ollama_api_base=ollama.url.replace("://", "://user:hunter22canary@"),
            gemini_api_base=f"{gemini.url}/v1beta",
            gemini_api_key=KEY,
        )
    text = json.dumps([check.as_dict() for check in found.values()])
    assert "canary" not in text
    assert found["gemini"].detail.startswith("key is set")
    assert found["schema gemini/gemini-2.5-flash"].state is CheckState.OK


def test_schemas_are_tried_only_when_asked_and_what_was_found_is_told_later(ollama: OllamaServer) -> None:
    where = {"ollama_api_base": ollama.url}
    untried = checks(**where)["schema ollama/llama3.2"]
    assert (untried.state, untried.fix) == (CheckState.ABSENT, "llmkit doctor --probe")
    assert ollama.call_count == 0
    assert checks(probe=True, **where)["schema ollama/llama3.2"].state is CheckState.OK
    assert checks(**where)["schema ollama/llama3.2"].state is CheckState.OK
    ollama.ignores_schema = True
    ignoring = checks(probe=True, **where)["schema ollama/llama3.2"]
    assert "accepts a schema and ignores it" in ignoring.detail
    assert "ollama.com/install.sh" in str(ignoring.fix)
    with Session() as session:
        assert set(session.runs().stage) == {"probe"}


def test_a_trial_that_fails_is_told_as_what_it_is(ollama: OllamaServer) -> None:
    ollama.script(Fault.status(500, "out of memory"))
    found = checks(probe=True, ollama_api_base=ollama.url, max_retries=0)["schema ollama/llama3.2"]
    assert found.state is CheckState.FAILED
    assert "out of memory" in found.detail


def test_the_embedded_model_is_told_with_its_context() -> None:
    (local,) = PROVIDERS[LLMProvider.LOCAL].check(load_settings(local_context_tokens=2048), None)
    assert (local.state, local.route) == (CheckState.OK, "local/gemma-3-270m")
    assert "context: 2,048 tokens" in local.detail


@contextmanager
def _without_rights_of_root() -> Iterator[None]:
    """Take the right to write everything from this process, which root has whatever the mode of a file is."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.mark.parametrize(("exists", "folder_mode"), [(True, 0o777), (True, 0o555), (False, 0o555)])
def test_a_database_that_cannot_be_written_is_reported(exists: bool, folder_mode: int, ollama: OllamaServer) -> None:
    # pytest's own folder is closed to other users.
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    settings = load_settings(database_url=f"sqlite:///{folder}/runs.db")
    try:
        if exists:
            with Session("study", settings=settings) as session:
                session.runs()
            (folder / "runs.db").chmod(0o444)
        folder.chmod(folder_mode)
        with _without_rights_of_root():
            (found,) = doctor._check_safely("database", doctor._check_database, settings)
    finally:
        shutil.rmtree(folder)
    assert found.state is CheckState.FAILED
    assert "cannot be written" in found.detail


def test_a_database_in_use_is_not_called_read_only(ollama: OllamaServer) -> None:
    with Session("study", ollama_api_base=ollama.url) as session:
        session.chat("x", route="ollama/llama3.2")
        assert checks(ollama_api_base=ollama.url)["database"].state is CheckState.OK


def test_certificates_that_cannot_be_loaded_are_one_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError("no certificates")

    monkeypatch.setattr(tls, "load_trusted_certificates", fail)
    found = checks(ollama_api_base="https://127.0.0.1:1")["ollama"]
    assert found.state is CheckState.FAILED
    assert "SSL_CERT_FILE" in found.detail


def test_every_provider_has_its_own_checks_and_the_doctor_only_loops(ollama: OllamaServer) -> None:
    found = checks(ollama_api_base=ollama.url)
    assert {str(name) for name in PROVIDERS} <= set(found)
    source = Path(doctor.__file__).read_text(encoding="utf-8")
    assert not any(f'"{name}"' in source.replace('"local": (', "") for name in PROVIDERS)


async def test_it_works_inside_a_running_loop(ollama: OllamaServer) -> None:
    assert asyncio.get_running_loop().is_running()
    assert "ollama/llama3.2" in usable_routes(examine(load_settings(ollama_api_base=ollama.url)))


@pytest.mark.parametrize("as_json", [True, False])
def test_the_command_prints_the_checks_and_tries_models_only_with_probe(
    ollama: OllamaServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    monkeypatch.setenv("LLM_OLLAMA_API_BASE", ollama.url)
    monkeypatch.setenv("LLM_LOCAL_MODEL", "none-such")
    options = ["--json"] if as_json else []
    assert run_command(["doctor", *options]) == 0
    assert ollama.call_count == 0
    assert "not tried" in capsys.readouterr().out
    assert run_command(["doctor", "--probe", *options]) == 0
    assert 1 <= ollama.call_count <= 8
    shown = capsys.readouterr().out
    assert "answers are constrained to a schema" in shown
    if as_json:
        report = json.loads(shown)
        assert (report["healthy"], report["usable_routes"]) == (True, ["ollama/llama3.2"])
        assert {"name", "state", "detail", "fix", "route", "facts"} == set(report["checks"][0])
