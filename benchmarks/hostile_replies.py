"""Thousands of calls to servers that send anything, and whether every request has its record.

    python -m benchmarks.hostile_replies [calls]

By default 1,500 calls through each protocol and each request path, 6,000 in all, of which most send two requests. For
each: requests that the server read against rows of `llm_attempts`, runs by status, and outcomes by error code. It exits
with 1 when a request has no row, a run stays STARTED, a call raises anything but an `LLMError`, or the call after the
hostile ones does not work. Takes two to five minutes.
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

CALLS = 1500
CALLERS = 4


async def measure(provider: str, path: str, calls: int, folder: Path) -> bool:
    """Print the figures of one protocol and one path, and return whether they agree."""
    url = f"sqlite:///{folder}/{provider}-{path}.db"
    upgrade(url)
    began_s = time.perf_counter()
    with JournalHome(url) as home:
        requests, outcomes = await ask_hostile_server(provider, path, home.repo, calls, callers=CALLERS, seed="bench")
        rows, statuses = len(home.attempts()), Counter(run["status"] for run in home.runs())
    agrees = rows == requests and not statuses["STARTED"] and not outcomes["defect"]
    print(
        f"{provider:7} {path:10} {calls:6,} calls {requests:6,} requests {rows:6,} attempts  {dict(statuses)} "
        f"{time.perf_counter() - began_s:6.1f} s  {'agree' if agrees else 'DO NOT AGREE'}",
        flush=True,
    )
    print("        ", ", ".join(f"{code} {number:,}" for code, number in outcomes.most_common()), flush=True)
    return agrees


async def main(calls: int) -> bool:
    """Measure both protocols on both paths."""
    # Pydantic's words, inside LiteLLM, about counts that are no numbers.
    warnings.filterwarnings("ignore", message="Pydantic serializer warnings")
    with tempfile.TemporaryDirectory() as folder:
        results = [await measure(provider, path, calls, Path(folder)) for path in PATHS for provider in ROUTES]
    return all(results)


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else CALLS)) else 1)
