"""Thousands of calls to servers that send anything, and whether every request has its record.

    python -m benchmarks.hostile_replies [calls]

By default 400 calls through each protocol and each request path, read whole and streamed, 6,400 in all, of which most
send two requests. For each: requests that the server read against rows of `llm_attempts`, runs by status, and outcomes
by error code. It exits with 1 when a request has no row, a run stays STARTED, a call raises anything but an `LLMError`,
or the call after the hostile ones does not work. Takes five to ten minutes.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

from llmkit.persistence.migrate import upgrade
from tests.support.hostile_replies import PATHS, ROUTES, ask_hostile_server
from tests.support.repositories import JournalHome

CALLS = 400
CALLERS = 4


async def measure(provider: str, path: str, calls: int, folder: Path, *, streams: bool) -> bool:
    """Print the figures of one protocol and one path, and return whether they agree."""
    url = f"sqlite:///{folder}/{provider}-{path}-{streams}.db"
    upgrade(url)
    began_s = time.perf_counter()
    with JournalHome(url) as home:
        requests, outcomes = await ask_hostile_server(
            provider, path, home.repo, calls, callers=CALLERS, seed="bench", streams=streams
        )
        rows, statuses = len(home.attempts()), Counter(run["status"] for run in home.runs())
    agrees = rows == requests and not statuses["STARTED"] and not outcomes["defect"]
    form = "streamed" if streams else "whole"
    print(
        f"{provider:9} {path:9} {form:8} {calls:6,} calls {requests:6,} requests {rows:6,} attempts  {dict(statuses)} "
        f"{time.perf_counter() - began_s:6.1f} s  {'agree' if agrees else 'DO NOT AGREE'}",
        flush=True,
    )
    print("        ", ", ".join(f"{code} {number:,}" for code, number in outcomes.most_common()), flush=True)
    return agrees


async def main(calls: int) -> bool:
    """Measure all protocols on both paths, whole and streamed."""
    # Pydantic's words, inside LiteLLM, about counts that are no numbers.
    warnings.filterwarnings("ignore", message="Pydantic serializer warnings")
    with tempfile.TemporaryDirectory() as folder:
        results = [
            await measure(provider, path, calls, Path(folder), streams=streams)
            for streams in (False, True)
            for path in PATHS
            for provider in ROUTES
        ]
    return all(results)


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else CALLS)) else 1)
