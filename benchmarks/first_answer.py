"""The cost of the first stored answer of a fresh process, against a bare first `litellm.acompletion`.

    python benchmarks/first_answer.py [--rounds N]

Every figure is of a whole process, from its start to its end: three that get one stored answer through `Session.chat`
(from the content cache, by idempotency key, from a cassette) and one that asks a stand-in server through litellm
itself, with what would make it talk to other servers switched off. They take turns, and figures are medians; read the
ratios to `stock`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from llmkit import Session
from llmkit.persistence.journal import Journal
from llmkit.replay.cassette import Cassette
from llmkit.replay.recorder import recordings
from llmkit.testing import OllamaServer

MODEL = "llama3.1"  # in LiteLLM's list of models: about one that is not it asks Ollama before every call
PROMPT = "Name the capital of Italy."
TARGET = 0.1

STORED = """
import llmkit
s = llmkit.Session("bench", {how})
answer = s.chat({prompt!r}, route="ollama/{model}", {key})
assert answer.text == "Rome" and answer.served_from == {served_from!r}, answer.served_from
s.close()
"""
STOCK = """
import asyncio, litellm
litellm.suppress_debug_info = True
asked = [dict(role="user", content={prompt!r})]
answer = asyncio.run(litellm.acompletion(model="ollama_chat/{model}", api_base={url!r}, messages=asked))
assert answer.choices[0].message.content == "Rome"
"""


def scripts(url: str) -> dict[str, str]:
    """Return the program of each contestant."""
    known = {"prompt": PROMPT, "model": MODEL, "url": url}
    return {
        "cache": STORED.format(how="", key="", served_from="cache", **known),
        "key": STORED.format(how="", key='idempotency_key="k"', served_from="replay", **known),
        "cassette": STORED.format(how='replay="c.jsonl"', key="", served_from="provider", **known),
        "stock": STOCK.format(**known),
    }


def prepare(folder: Path, url: str) -> None:
    """Store the answer in all three places."""
    database = f"sqlite:///{folder / 'llmkit.db'}"
    with Session(
        "bench", database_url=database, cache_dir=folder / ".llmkit" / "cache", ollama_api_base=url, warm_up=False
    ) as session:
        session.chat(PROMPT, route=f"ollama/{MODEL}")
        session.chat(PROMPT, route=f"ollama/{MODEL}", idempotency_key="k")
    journal = Journal(database)
    with (folder / "c.jsonl").open("w") as file:
        Cassette(recordings(journal.engine, journal.address, "bench")).write(file)
    journal.close()


def measure_process(script: str, folder: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Measure wall and CPU seconds of a process."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", script], cwd=folder, env=environment)
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit("a contestant failed; see above")
    return wall, used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LLM_")}
    environment = kept | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION"}
    with TemporaryDirectory() as name, OllamaServer("Rome", models=[MODEL]) as server:
        folder = Path(name)
        prepare(folder, server.url)
        contestants = scripts(server.url)
        found: dict[str, list[tuple[float, float]]] = {each: [] for each in contestants}
        for number in range(rounds + 1):
            for each, script in contestants.items():
                figures = measure_process(script, folder, environment)
                if number:  # the first round only warms the disk
                    found[each].append(figures)
    wall, cpu = ({each: statistics.median(row[at] for row in rows) for each, rows in found.items()} for at in (0, 1))
    print(f"{'':10}{'wall s':>10}{'CPU s':>10}{'wall ratio':>12}{'CPU ratio':>12}   (target {TARGET} of stock)")
    for each in contestants:
        ratios = wall[each] / wall["stock"], cpu[each] / cpu["stock"]
        print(f"{each:10}{wall[each]:10.2f}{cpu[each]:10.2f}{ratios[0]:12.3f}{ratios[1]:12.3f}")


if __name__ == "__main__":
    main()
