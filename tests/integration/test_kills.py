"""Workers, their driver and PostgreSQL are killed during an evaluation: `scripts/kill_workers.py`, in small."""

from __future__ import annotations

import pytest

from scripts.kill_workers import Options, play
from tests.support.databases import PostgresServer


@pytest.mark.slow
def test_kills_lose_and_repeat_nothing(own_postgres: PostgresServer) -> None:
    """Each sample has one result, no finished call is sent again, and only what was killed is in doubt."""
    outcome = play(Options(samples=60, workers=2, kills=2, stops=1, seed=4), own_postgres)
    assert outcome.is_right(60), outcome
    assert outcome.killed["PostgreSQL"] == 1
