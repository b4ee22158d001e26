"""A budget of several workers on PostgreSQL, of which some are killed with SIGKILL while they spend."""

from __future__ import annotations

import random
import threading
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal

import psutil
import pytest

from llmkit import Session
from llmkit.evals import Budget
from llmkit.prices.price_list import Price, PriceList
from llmkit.testing import Load, OllamaServer, Reply
from tests.support.shared_runs import ROUTE, make_task

KILLS, CONCURRENCY = 2, 4
INPUT_TOKENS, OUTPUT_TOKENS = 200, 40
USD_PER_TOKEN = 1e-6
LIMIT_USD = 0.015


def make_prices() -> PriceList:
    usd = Decimal(1)
    return PriceList(
        (Price("ollama", "*", datetime(2026, 1, 1, tzinfo=UTC), 0, usd, usd, None, None, "test", is_own=True),)
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_killed_workers_do_not_exceed_a_budget(postgres_url: str, seed: int) -> None:
    """The server never bills more than the limit: here the documented bound, as each call is one request.

    All that the server has received counts, the answers included that a worker did not live to read.
    """
    rng = random.Random(seed)
    kill_after = sorted(rng.sample(range(5, 40), KILLS))
    others = set(psutil.Process().children())  # of other tests in this process
    killed: list[int] = []
    stop = threading.Event()
    reply = Reply('{"name": "x"}', input_tokens=INPUT_TOKENS, output_tokens=OUTPUT_TOKENS)
    task = make_task(200, parameters={"max_output_tokens": OUTPUT_TOKENS})

    def kill_workers() -> None:
        while not stop.wait(0.005) and len(killed) < KILLS:
            workers = [each for each in psutil.Process().children() if each not in others]
            if server.call_count >= kill_after[len(killed)] and workers:
                victim = rng.choice(workers)
                with suppress(psutil.NoSuchProcess):
                    victim.kill()
                    victim.wait(5)
                killed.append(victim.pid)

    with OllamaServer(reply, load=Load(latency_s=0.1)) as server:
        killer = threading.Thread(target=kill_workers)
        with Session(ollama_api_base=server.url, database_url=postgres_url) as session:
            killer.start()
            try:
                report = session.evaluate(
                    task,
                    ROUTE,
                    workers=2,
                    concurrency=CONCURRENCY,
                    warm_up=False,
                    budget=Budget(max_cost_usd=LIMIT_USD),
                    prices=make_prices(),
                    progress=False,
                )
            finally:
                stop.set()
                killer.join()
        billed_usd = server.call_count * (INPUT_TOKENS + OUTPUT_TOKENS) * USD_PER_TOKEN
    assert len(killed) == KILLS
    assert report.budget is not None
    assert report.budget.stopped_by == "cost"
    assert LIMIT_USD / 2 < billed_usd <= LIMIT_USD
    # Calls of unknown use count as the most that they can have used.
    assert report.budget.cost_usd is not None
    assert billed_usd <= report.budget.cost_usd <= LIMIT_USD
