"""The same by langchain's SQLite cache, in front of a model that answers without a network.

python hits_langchain.py URL FOLDER QUESTIONS
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path

from langchain_community.cache import SQLiteCache
from langchain_core.globals import set_llm_cache
from langchain_core.language_models.fake_chat_models import FakeListChatModel


def main(folder: str, questions: int) -> dict[str, dict[str, float]]:
    set_llm_cache(SQLiteCache(str(Path(folder, "langchain.db"))))
    model = FakeListChatModel(responses=['{"label": "positive"}'])
    prompts = [f"{'Read the complaint and name the product. ' * 8} {number}" for number in range(questions)]
    for prompt in prompts:
        model.invoke(prompt)
    wall, cpu = time.perf_counter(), time.process_time()
    for prompt in prompts:
        model.invoke(prompt)
    wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    return {"SQLiteCache": {"wall_s": wall_s, "cpu_s": cpu_s, "samples": questions}}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(main(sys.argv[2], int(sys.argv[3]))))
