"""Settings: one readable error, no secret shown, keys only where they are safe."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from llmkit import Session
from llmkit.errors import LLMConfigurationError
from llmkit.settings import LLMSettings, child_environment, is_loopback, load_settings
from llmkit.testing import OllamaServer


def test_defaults_load_in_an_empty_environment() -> None:
    settings = load_settings()
    assert settings.database_url == "sqlite:///llmkit.db"
    assert settings.gemini_api_key is None


def test_environment_and_dotenv_are_read_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("LLM_OLLAMA_MODEL=from-file\nLLM_GEMINI_MODEL=from-file\nOTHER=1\n", encoding="utf-8")
    monkeypatch.setenv("LLM_GEMINI_MODEL", "from-environment")
    settings = load_settings(concurrency_limit=3)
    assert (settings.ollama_model, settings.gemini_model) == ("from-file", "from-environment")
    assert settings.concurrency_limit == 3


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("LLM_CONCURRENCY_LIMIT", "zero-canary"),
        ("LLM_DEFAULT_TIMEOUT_S", "-1"),
        ("LLM_DEFAULT_PROFILE", "canary"),
        ("LLM_OLLAMA_API_BASE", "not a url canary"),
        ("LLM_DATABASE_URL", "mysql://canary:canary@x/y"),
        ("LLM_DATABASE_URL", "sqlite://"),
        ("LLM_GEMINI_API_BASE", "http://canary.example.org"),
        ("LLM_WORKSPACE_ID", " "),
    ],
)
def test_a_bad_value_names_the_variable_and_shows_no_value(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(LLMConfigurationError) as caught:
        load_settings()
    assert variable in str(caught.value)
    assert "canary" not in str(caught.value)


def test_a_dotenv_file_in_another_encoding_is_one_line() -> None:
    Path(".env").write_text("LLM_OLLAMA_MODEL=x\n", encoding="utf-16")
    with pytest.raises(LLMConfigurationError, match=r"^The file \.env .* is not UTF-8; save it as that$"):
        load_settings()


def test_several_bad_values_are_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_MAX_RETRIES", "x")
    monkeypatch.setenv("LLM_CACHE_TTL_S", "y")
    with pytest.raises(LLMConfigurationError, match=r"LLM_MAX_RETRIES.*\n.*LLM_CACHE_TTL_S"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ollama_modell", r"ollama_modell\. Did you mean ollama_model\?$"),
        ("api_key", r"Did you mean gemini_api_key\?$"),
        ("ollama_url", r"Did you mean ollama_api_base\?$"),
        ("zzz", r"zzz\. Known settings: .*ollama_model,"),
    ],
)
def test_unknown_setting_names_the_known_ones(name: str, said: str) -> None:
    """The error names the setting that was probably meant, or all of them."""
    with pytest.raises(LLMConfigurationError, match=said):
        load_settings(**{name: "x"})


@pytest.mark.parametrize("key", [" canary-1\n", "canary-1", "\tcanary-1\r\n"])
def test_white_space_around_a_key_is_no_part_of_it(key: str) -> None:
    secret = load_settings(gemini_api_key=key).gemini_api_key
    assert secret is not None
    assert secret.get_secret_value() == "canary-1"


@pytest.mark.parametrize("key", ["can ary", "canary\u2026", '"canary"', "can\nary", "canary\x00"])
def test_a_key_that_cannot_be_one_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(LLMConfigurationError, match=r"LLM_GEMINI_API_KEY: contains a blank.*copy it again") as caught:
        load_settings(gemini_api_key=key)
    assert "can" not in str(caught.value).replace("cannot", "")


def test_a_key_of_blanks_is_none() -> None:
    assert load_settings(gemini_api_key=" \n").gemini_api_key is None


def test_prefixed_gemini_key_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """`GEMINI_API_KEY` is used only if `LLM_GEMINI_API_KEY` is not set."""
    monkeypatch.setenv("GEMINI_API_KEY", "plain")
    assert load_settings().gemini_api_key.get_secret_value() == "plain"
    monkeypatch.setenv("LLM_GEMINI_API_KEY", "prefixed")
    assert load_settings().gemini_api_key.get_secret_value() == "prefixed"


def test_no_secret_in_a_repr() -> None:
    settings = load_settings(gemini_api_key="canary", database_url="postgresql://u:canary@h/d")
    assert "canary" not in f"{settings!r} {settings}"


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://localhost:1", True),
        ("http://127.9.9.9", True),
        ("http://[::1]:8", True),
        ("http://x.localhost", True),
        ("http://localhost.example.org", False),
        ("http://10.0.0.1", False),
        ("http://127.0.0.1.example.org", False),
    ],
)
def test_loopback_is_told_from_elsewhere(url: str, here: bool) -> None:
    assert is_loopback(url) is here


def test_a_child_process_gets_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "canary")
    assert "canary" not in child_environment(X="1").values()
    assert child_environment(X="1")["X"] == "1"


def test_every_setting_says_what_it_is() -> None:
    assert not [name for name, field in LLMSettings.model_fields.items() if not field.description]


@pytest.mark.parametrize("name", ["ollama_api_base", "gemini_api_base"])
@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("localhost:11434", "must begin with http:// or https://"),
        ("127.0.0.1", "must begin with http:// or https://"),
        ("ftp://localhost", "must begin with http:// or https://"),
        ("http://localhost/?x=1", "must not have a query"),
        ("http://localhost#local", "must not have a query"),
    ],
)
def test_an_address_that_no_path_can_be_appended_to_is_refused(name: str, address: str, problem: str) -> None:
    with pytest.raises(LLMConfigurationError, match=f"LLM_{name.upper()}: {problem}"):
        load_settings(**{name: address})


def test_paths_expand_the_home_and_variables(monkeypatch, tmp_path):
    """Before anybody uses them: the private folder and the real cache were two different ones."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", str(tmp_path / "place"))
    settings = load_settings(cache_dir="~/cache", database_url="sqlite:///~/llmkit.db")
    assert (settings.cache_dir, settings.database_url) == (tmp_path / "cache", f"sqlite:///{tmp_path}/llmkit.db")
    assert load_settings(cache_dir="$PLACE/cache").cache_dir == tmp_path / "place" / "cache"
    assert load_settings(cache_dir="${PLACE}").cache_dir == tmp_path / "place"


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ({"cache_dir": "$NOT_SET/cache"}, "variable NOT_SET, which is not set"),
        ({"cache_dir": "~nobody-of-this-name/cache"}, "no user's home"),
        ({"database_url": "sqlite:///a.db?mode=ro"}, "question mark"),
    ],
)
def test_a_path_that_cannot_be_meant_is_refused(setting, problem):
    with pytest.raises(LLMConfigurationError, match=problem):
        load_settings(**setting)


def test_an_expanded_cache_folder_is_private(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with OllamaServer() as server, Session("w", ollama_api_base=server.url, cache_dir="~/cache") as session:
        session.chat("hi", route="ollama/llama3.2")
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
    assert not Path("~").exists()
