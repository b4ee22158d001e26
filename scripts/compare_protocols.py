"""A comparison of protocols: the same weights behind three servers, asked through every kind of endpoint.

    make ollama                                 # once: builds a real Ollama
    .venv/bin/python scripts/compare_protocols.py

Asks the samples of the sentiment task through Ollama's own protocol (`ollama`), and through Chat Completions at the
same Ollama (`ollama-v1`) and at the llama.cpp of the local model (`lab`), with log-probabilities. Then it asks for the
label as text, through Messages too (`ollama-messages`, `lab-messages`), where neither server obeys a schema. Prints
both reports and each difference from the first route, and writes the whole reports as HTML pages. The runs have names:
the same command again calls nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path

import build_ollama
from compare_servers import LOCAL, TASK, Ollama, explain_difference
from rich.console import Console

from llmkit import LLMError, Session, load_settings
from llmkit.evals import Sample, Task, load_tasks
from llmkit.local_model.server import share_server
from llmkit.ports import Endpoint

MODEL = build_ollama.MODEL
KEY_VARIABLE = "LAB_KEY"
CONCURRENCY = 4


def describe_endpoints(ollama_url: str, lab: Endpoint) -> dict[str, dict[str, object]]:
    """Return the tables of the endpoints beside the built-in `ollama`."""
    common: dict[str, object] = {"model": MODEL, "local": True}
    lab_root = lab.api_base.removesuffix("/v1")
    return {
        "ollama-v1": {"kind": "openai", "api_base": f"{ollama_url}/v1", **common},
        "lab": {"kind": "openai", "api_base": lab.api_base, "api_key_env": KEY_VARIABLE, **common},
        "ollama-messages": {"kind": "anthropic", "api_base": ollama_url, **common},
        "lab-messages": {"kind": "anthropic", "api_base": lab_root, "api_key_env": KEY_VARIABLE, **common},
    }


def compare(ollama: Ollama, lab: Endpoint, options: argparse.Namespace) -> int:
    """Run the evaluation, or read it again, and explain it."""
    console = Console()
    os.environ[KEY_VARIABLE] = lab.api_key or ""
    endpoints = describe_endpoints(ollama.url, lab)
    os.environ["LLM_ENDPOINTS"] = json.dumps(endpoints)
    routes = [f"{name}/{MODEL}" for name in ("ollama", *endpoints)]
    (task,) = load_tasks(TASK)
    as_text = Task(
        name="sentiment-text",
        dataset=str(TASK.with_name("sentiment.jsonl")),
        # The prompt ends inside the answer, which therefore is the label alone, up to the quotation mark.
        prompt=f'{task.prompt} {{{{"label": "',
        output_type=str,
        scorers=[right_label],
        parameters={**task.parameters, "stop": ['"']},
    )
    failed = False
    with Session("protocols", ollama_api_base=ollama.url, ollama_model=MODEL) as session:
        for each, name, asked, parameters, metric in (
            (task, options.name, routes[:3], {"logprobs": True}, "field_match"),
            (as_text, f"{options.name}-text", routes, {}, "right_label"),
        ):
            report = session.evaluate(
                each, asked, name=name, limit=options.samples, concurrency=CONCURRENCY, parameters=parameters
            )
            console.print(report.table())
            for route in asked[1:]:
                console.print(explain_difference(report, asked[0], route, metric), highlight=False, soft_wrap=True)
            console.print(f"The whole report: {report.to_html(f'{name}.html')}", highlight=False)
            failed = failed or report.has_failures
    return 1 if failed else 0


def right_label(output: str, sample: Sample) -> bool:
    """Return whether the text is the label of the sample."""
    return output.strip() == sample.target["label"]


def main() -> int:
    """Start both servers, compare, and stop them."""
    parser = argparse.ArgumentParser(description="The same weights behind three servers, through every protocol.")
    parser.add_argument("--samples", type=int, default=100, help="how many samples (default: %(default)s)")
    parser.add_argument("--name", default="protocols", help="name of the run and the page (default: %(default)s)")
    options = parser.parse_args()
    folder = build_ollama.find_built()
    if folder is None:
        sys.exit("There is no Ollama yet: run `make ollama`")
    local = share_server(load_settings(local_model=LOCAL.partition("/")[2]))
    with tempfile.TemporaryDirectory(prefix="llmkit-ollama-") as home:
        ollama = Ollama(folder, Path(home))
        try:
            ollama.start()
            return compare(ollama, asyncio.run(local.ensure_running()), options)
        finally:
            ollama.kill()
            asyncio.run(local.close())


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (LLMError, RuntimeError, build_ollama.ToolchainMissingError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted. What is finished is kept; the same command continues.")
