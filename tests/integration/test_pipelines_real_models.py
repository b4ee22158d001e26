"""Functions of several calls on real models: killed in the second step, and resumed without paying for the first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from scripts import kill_pipelines

if TYPE_CHECKING:
    from tests.support.ollama_server import RealOllama

pytestmark = pytest.mark.slow


@pytest.mark.ollama
def test_an_agent_that_is_killed_in_its_second_step_sends_no_finished_call_again(own_ollama: RealOllama) -> None:
    kill_pipelines.add_tools_model(own_ollama.url, own_ollama.model)
    outcome = kill_pipelines.run_case("agent-ollama", samples=2, kills=1, ollama_url=own_ollama.url)
    assert outcome.problems == ()
    assert outcome.finished_before >= 1


@pytest.mark.local
def test_two_steps_on_the_local_model_that_are_killed_in_the_second_send_no_finished_call_again() -> None:
    outcome = kill_pipelines.run_case("two-step-local", samples=2, kills=1, ollama_url=None)
    assert outcome.problems == ()
    assert outcome.finished_before >= 1
