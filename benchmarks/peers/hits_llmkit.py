"""Stored answers, through `LLMService.chat`: by idempotency key, and from the content cache.

python hits_llmkit.py URL FOLDER QUESTIONS
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from llmkit.bootstrap import open_runtime
from llmkit.settings import load_settings
from llmkit.types import LLMRequest, RequestContext

HERE = RequestContext(workspace_id="bench")


def question(number: int, **fields: object) -> LLMRequest:
    text = "Read the complaint and name the product. " * 8
    return LLMRequest(messages=f"{text} {number}", route="ollama/stand-in", temperature=0, **fields)


async def main(url: str, folder: str, questions: int) -> dict[str, dict[str, float]]:
    settings = load_settings(
        ollama_api_base=url, database_url=f"sqlite:///{folder}/bench.db", cache_dir=Path(folder, "cache")
    )
    runtime = open_runtime(settings)
    keyed = [question(number, idempotency_key=f"key-{number}") for number in range(questions)]
    plain = [question(number) for number in range(questions)]
    for start in range(0, questions, 16):
        await asyncio.gather(*(runtime.service.chat(each, HERE) for each in keyed[start : start + 16]))
    figures = {}
    for part, requests in (("replay", keyed), ("hit", plain)):
        wall, cpu = time.perf_counter(), time.process_time()
        for each in requests:
            answer = await runtime.service.chat(each, HERE)
            assert not answer.billed
        wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
        figures[part] = {"wall_s": wall_s, "cpu_s": cpu_s, "samples": questions}
    await runtime.close()
    return figures


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))))
