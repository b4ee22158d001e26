"""The demo: few-shot against zero-shot on a real model inside this machine, and on every other route that is there."""

import sys
import time
from pathlib import Path

from rich.console import Console

from llmkit import LLMError, Session, load_settings
from llmkit.doctor import examine, usable_routes
from llmkit.evals import load_tasks

ROOT = Path(__file__).parents[1]
RUN = "demo"
SAMPLES = 50
HOW_TO_GET = {
    "ollama": "start Ollama (`make ollama`, then `.venv/bin/python scripts/build_ollama.py --start`)",
    "gemini": "set LLM_GEMINI_API_KEY",
    "local": "pip install 'llmkit-research[local]'",
}


def main() -> int:
    """Run the comparison and say what it found, where it is stored, and what to try next."""
    console = Console()
    started_s = time.monotonic()
    settings = load_settings(workspace_id="demo")
    checks = {check.name: check for check in examine(settings) if check.name in HOW_TO_GET}
    there = usable_routes(tuple(checks.values()))
    (task,) = load_tasks(ROOT / "evals" / "sentiment" / "task.py")
    routes = [label for route in sorted(there, reverse=True) for label in (route, f"{route}@zero-shot")]
    console.print(f"Evaluating {SAMPLES} samples of task [b]{task.name}[/] on {', '.join(routes)}")
    with Session(settings=settings) as session:
        report = session.evaluate(task, routes, name=RUN, limit=SAMPLES)
    console.print(report.table())
    console.print(f"\nRoutes that ran: {', '.join(there)}.")
    for name, check in checks.items():
        if check.route is None:
            console.print(f"To add {name}: {HOW_TO_GET[name]} ({check.detail}).", markup=False)
    console.print(f"Every call is a row of {settings.database_url} ({time.monotonic() - started_s:.0f} s in all).")
    console.print("Next: `.venv/bin/llmkit runs --workspace demo`, or run `make demo` again: nothing is called twice.")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LLMError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted. What is finished is kept; `make demo` continues.")
