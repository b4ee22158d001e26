"""A kind of another package: found by its entry point, and routed, limited, recorded and displayed like any other."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmkit import LLMRequest, ResponseFormat, Session
from llmkit.cli.main import run_command
from llmkit.doctor import examine
from llmkit.errors import LLMConfigurationError, LLMUnsupported
from llmkit.providers import load_endpoints
from llmkit.settings import load_settings
from llmkit.testing import OpenAIServer, Reply

PACKAGE = Path(__file__).parents[1] / "support" / "third_party_kind"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package is installed, as pip would."""
    # The build writes into its source.
    source = shutil.copytree(PACKAGE, tmp_path_factory.mktemp("source") / "package")
    target = tmp_path_factory.mktemp("target")
    command = [str(Path(sys.executable).with_name("uv")), "pip", "install", "--quiet", "--offline", "--no-deps"]
    command += ["--no-build-isolation", "--python", sys.executable, "--target", str(target), str(source)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return target


@pytest.fixture
def shout(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIServer]:
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.setenv("SHOUT_KEY", "sk-shout-canary-00001")
    with OpenAIServer(Reply("AHOY"), api_key="sk-shout-canary-00001", models=["m"]) as server:
        table = f'kind = "shout"\nmodel = "m"\napi_base = "{server.api_base}"\napi_key_env = "SHOUT_KEY"\n'
        Path("llmkit.toml").write_text(f"[endpoints.loud]\n{table}requests_per_minute = 7\n", encoding="utf-8")
        yield server
    sys.modules.pop("llmkit_shout", None)


def test_it_is_routed_limited_recorded_and_displayed(shout: OpenAIServer, capsys: pytest.CaptureFixture[str]) -> None:
    settings = load_settings()
    spec = load_endpoints(settings)["loud"]
    assert (spec.kind, spec.per_minute(settings)) == ("shout", (7, None))
    with Session() as session:
        answer = session.chat("Hi", route="loud/m")
        assert (answer.text, str(answer.route), answer.usage.input_tokens is not None) == ("AHOY", "loud/m", True)
        (call,) = shout.calls
        assert call.headers["X-Shout"] == "loud"
        assert set(session.runs()["provider"]) == set(session.attempts()["provider"]) == {"loud"}
        with pytest.raises(LLMUnsupported, match="loud/m cannot take this request: it cannot be asked for JSON"):
            session.chat("Hi", route="loud/m", response_format=ResponseFormat())
    assert next(check.detail for check in examine(settings) if check.name == "loud").startswith("shouts at")
    assert run_command(["endpoints", "list"]) == 0
    assert "shout" in capsys.readouterr().out


def test_its_key_is_masked_everywhere(shout: OpenAIServer, caplog: pytest.LogCaptureFixture) -> None:
    shout.script(Reply("your key is sk-shout-canary-00001"))
    with Session() as session:
        session.chat("Hi", route="loud/m")
        shown = session.runs().to_csv() + session.attempts().to_csv() + caplog.text + repr(session)
    assert "sk-shout-canary-00001" not in shown


def test_a_broken_package_is_one_error(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.setitem(sys.modules, "llmkit_shout", None)
    settings = load_settings(endpoints={"loud": {"kind": "shout", "model": "m"}})
    with pytest.raises(LLMConfigurationError, match=r"kind: llmkit-shout cannot be loaded \(ModuleNotFoundError\)"):
        load_endpoints(settings)


def test_its_own_checks_of_the_address_are_used(shout: OpenAIServer) -> None:
    settings = load_settings(endpoints={"loud": {"kind": "shout", "model": "m"}})
    with pytest.raises(LLMConfigurationError, match="api_base: is missing; this kind has no address"):
        load_endpoints(settings)
    assert LLMRequest(messages="x", route="loud/m").route is not None
