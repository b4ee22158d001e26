"""A whole service before a server that sends anything: its errors, its records and its next call."""

from __future__ import annotations

import pytest

from tests.support.hostile_replies import PATHS, ROUTES, ask_hostile_server
from tests.support.repositories import JournalHome

ROUNDS = 80


@pytest.mark.parametrize("provider", ROUTES)
@pytest.mark.parametrize("path", PATHS)
async def test_every_request_has_its_row_and_no_call_stays_started(path: str, provider: str, sqlite_url: str) -> None:
    with JournalHome(sqlite_url) as home:
        requests, outcomes = await ask_hostile_server(provider, path, home.repo, ROUNDS)
        runs, attempts = home.runs(), home.attempts()
    assert len(attempts) == requests
    assert {run["status"] for run in runs} == {"SUCCEEDED", "FAILED"}
    assert sum(run["attempts"] for run in runs) == requests
    assert not outcomes["defect"]
    assert outcomes.total() == ROUNDS + 2
