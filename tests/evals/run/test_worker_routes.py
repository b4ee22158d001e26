"""Workers on machines that cannot call every route: they leave those to others, and the driver says why."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest

from llmkit import LLMEvaluationError, Session
from llmkit.errors import LLMConfigurationError
from llmkit.evals import Budget, judge
from llmkit.testing import OllamaServer
from tests.support.shared_runs import ROUTE, OneJob, count_chats, make_task

KEYED = "lab/llama3.2"
TABLE = '[endpoints.lab]\nkind = "ollama"\napi_base = "{url}"\nmodel = "llama3.2"\napi_key_env = "LAB_KEY"\n'
NO_KEY = r"takes no samples of lab/llama3\.2, because lab/llama3\.2 cannot be called there: .*LAB_KEY is empty; set it"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OllamaServer]:
    with OllamaServer() as server:
        monkeypatch.setenv("LLM_OLLAMA_API_BASE", server.url)
        monkeypatch.setenv("LAB_KEY", "key-of-the-lab")
        Path("llmkit.toml").write_text(TABLE.format(url=server.url))
        yield server


class Machines(Executor):
    """Runs one job on each machine, one after the other.

    Args:
        monkeypatch: Changes the environment.
        *keys: What is in the variable of the key on each of them.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *keys: str) -> None:
        self._monkeypatch = monkeypatch
        self._keys = list(keys)
        self.max_workers = len(keys)

    def submit(self, function: Any, /, *arguments: Any, **_options: Any) -> Future[Any]:
        self._monkeypatch.setenv("LAB_KEY", self._keys.pop(0))
        future: Future[Any] = Future()
        future.set_result(function(*arguments))
        return future


def test_a_worker_without_the_key_leaves_the_route_to_others(
    server: OllamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does what it can, the report is complete, and one line says what is missing where."""
    with Session() as session, pytest.warns(UserWarning, match=f"The worker on .* {NO_KEY}") as warned:
        report = session.evaluate(
            make_task(4),
            [ROUTE, KEYED],
            warm_up=False,
            workers=Machines(monkeypatch, "", "key-of-the-lab"),
            progress=False,
        )
    assert len(warned) == 1
    assert [each.status for each in report.results] == ["SUCCEEDED"] * 8
    assert count_chats(server) == 8
    assert not report.stopped


def test_a_route_that_no_worker_can_call_has_no_results(server: OllamaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with Session() as session, pytest.warns(UserWarning, match=NO_KEY):
        report = session.evaluate(
            make_task(4), [ROUTE, KEYED], warm_up=False, workers=Machines(monkeypatch, "", ""), progress=False
        )
    assert (report.counts["SUCCEEDED"], report.counts["NOT_RUN"], len(report.results)) == (4, 4, 8)
    assert list(report.stopped) == [KEYED]
    assert "LAB_KEY" in report.stopped[KEYED]


def remove_key(parcel: bytes) -> bytes:
    import os

    os.environ["LAB_KEY"] = ""
    return parcel


def remove_endpoint(parcel: bytes) -> bytes:
    Path("llmkit.toml").unlink()
    return parcel


@pytest.mark.parametrize(
    ("change", "routes", "message"),
    [(remove_key, KEYED, NO_KEY), (remove_endpoint, KEYED, r"there is no endpoint 'lab': copy its table")],
    ids=["key", "endpoint"],
)
def test_without_any_worker_that_can_the_run_ends(server: OllamaServer, change: Any, routes: Any, message: str) -> None:
    """Nothing is sent, and no failed result is stored."""
    with Session() as session:
        with pytest.raises(LLMEvaluationError, match=f"^No worker could join. The worker on .*{message}[^\n]*$"):
            session.evaluate(make_task(4), routes, name="run", workers=OneJob(change), progress=False)
        stored = session.report("run")
    assert not count_chats(server)
    assert not stored.results


@pytest.mark.parametrize(
    ("routes", "changes", "options"),
    [
        ([ROUTE, KEYED], {"parameters": {"max_output_tokens": 9}}, {"budget": Budget(max_tokens=9_999)}),
        (ROUTE, {"scorers": [judge(criteria="polite", route=KEYED)]}, {}),
    ],
    ids=["budget", "judge"],
)
def test_a_worker_needs_whatever_its_samples_may_call(
    server: OllamaServer, routes: Any, changes: Any, options: Any
) -> None:
    """A budget is that of all routes, and a judge that of all samples."""
    with Session() as session, pytest.raises(LLMEvaluationError, match="LAB_KEY"):
        session.evaluate(make_task(4, **changes), routes, workers=OneJob(remove_key), progress=False, **options)
    assert not count_chats(server)


def test_a_router_answers_from_where_the_driver_would(server: OllamaServer) -> None:
    """On a machine without the key of its first choice it would choose another model."""
    with (
        Session(gemini_api_key="key-of-gemini", router_policy="prefer_cloud") as session,
        pytest.raises(LLMEvaluationError, match=r"gemini.*cannot be called there: no key: set LLM_GEMINI_API_KEY"),
    ):
        session.evaluate(make_task(4), "policy:default", workers=OneJob(), progress=False)
    assert not count_chats(server)


def test_a_map_is_left_to_workers_with_the_key(server: OllamaServer) -> None:
    with (
        Session() as session,
        pytest.raises(LLMConfigurationError, match=r"No worker could join\. .*takes no rows.*KEY"),
    ):
        session.map("Translate: {text}", ["a", "b"], route=KEYED, workers=OneJob(remove_key), progress=False)
    assert not count_chats(server)
