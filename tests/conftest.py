"""Every test starts in an empty folder, without llmkit's variables, and cannot reach another machine."""

from __future__ import annotations

import gc
import os
import signal
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = [
    "tests.support.command_server",
    "tests.support.databases",
    "tests.support.no_pickle",
    "tests.support.ollama_server",
    "tests.support.open_connections",
    "tests.support.open_databases",
    "tests.support.raw_server",
]

# The same examples in every run and no clock on them: what fails, fails again, on the slowest machine too.
# `--hypothesis-profile=search` looks for new ones.
settings.register_profile(
    "steady", max_examples=50, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("search", max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

_LOCAL_NAMES = {"localhost", "", None}

# A shell's background jobs are started deaf to Ctrl-C, which some tests send to themselves.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_folder_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("LLM_") and name != "LLM_TEST_DATABASE_URL":
            monkeypatch.delenv(name)
    for name in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "OLLAMA_API_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    # Endpoints of the person who runs the tests.
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "no-configuration"))
    # Loading litellm beside every session would slow all tests down; `test_warm_up.py` switches it on.
    monkeypatch.setenv("LLM_WARM_UP", "false")
    monkeypatch.chdir(tmp_path)
    # On a busy machine a stand-in may take longer than a person should wait.
    monkeypatch.setattr("llmkit.discovery.ollama.ANSWER_WITHIN_S", 30.0)


def _is_here(host: object) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    if name in _LOCAL_NAMES:
        return True
    try:
        return ip_address(str(name)).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True, scope="session")
def _offline() -> Iterator[None]:
    """A name look-up or a connection beyond loopback fails, as it would without a network."""
    connect, connect_ex, look_up = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def guarded_look_up(host: object, *args: object, **kwargs: object) -> object:
        if not _is_here(host):
            raise socket.gaierror(socket.EAI_NONAME, "tests are offline")
        return look_up(host, *args, **kwargs)

    def guarded(original: object) -> object:
        def call(self: socket.socket, address: object) -> object:
            if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_here(address[0]):
                raise OSError(f"tests are offline, and {address[0]} is another machine")
            return original(self, address)

        return call

    patch = pytest.MonkeyPatch()
    patch.setattr(socket, "getaddrinfo", guarded_look_up)
    patch.setattr(socket.socket, "connect", guarded(connect))
    patch.setattr(socket.socket, "connect_ex", guarded(connect_ex))
    yield
    patch.undo()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow ones, in whatever order the rest is: else one process works on the last of them alone."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect no garbage meanwhile: there is little, and each round walks through all that was imported.

    Nothing is frozen for the tests themselves, because a batch looks whether its process has frozen its objects.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
