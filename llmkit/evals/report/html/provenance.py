"""What was run: hashes, versions, models, prompts, settings and seeds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from llmkit.display.html import Html, html, join_html
from llmkit.evals.report.html.svg import Section, count, definitions, section, table, unknown

if TYPE_CHECKING:
    from llmkit.evals.report.analysis import Analysis

__all__ = ["provenance_summary"]


def provenance_summary(report: Analysis, *, stable: bool) -> Section:
    """Everything that somebody needs who wants to run it again."""
    known = report.provenance
    return section(
        "run",
        "What was run",
        definitions(_facts(report, known, stable=stable)),
        _routes(report, known),
        _models(known),
        *_texts(report, known),
    )


def _facts(report: Analysis, known: Mapping[str, Any], *, stable: bool) -> Iterator[tuple[str, Any]]:
    run = report.run
    yield "Run", run.name
    if not stable:
        yield "Id of the run", _code(run.id)
        yield "Begun", f"{run.created_at_utc:%Y-%m-%d %H:%M:%S} UTC"
    yield "Task", run.task_name
    yield "Hash of the task", _code(run.task_sha256)
    yield "Hash of the dataset", _code(run.dataset_sha256)
    yield "Hash of the scorers", _code(known.get("scorers_sha256"))
    yield "Samples in the dataset", _or_unknown(known.get("samples"))
    yield "Epochs", _or_unknown(known.get("epochs"))
    yield "Commit of the code around the task", _code(known.get("commit"))
    yield "Python", _or_unknown(known.get("python"))
    yield "Platform", _or_unknown(known.get("platform"))
    for name, title in (("packages", "Packages"), ("settings", "Settings"), ("options", "Options")):
        yield title, _listed(known.get(name) or {})


def _code(value: Any) -> Html:
    return unknown if value is None else html("<code>{}</code>", value)


def _or_unknown(value: Any) -> Any:
    if value is None:
        return unknown
    return count(value) if isinstance(value, int) else value


def _listed(values: Mapping[str, Any]) -> Any:
    if not values:
        return unknown
    return join_html(html('<code class="item">{} {}</code> ', name, value) for name, value in values.items())


def _routes(report: Analysis, known: Mapping[str, Any]) -> Html:
    described = known.get("routes", {})
    described = described if isinstance(described, Mapping) else {}
    cells = []
    for label in report.variants:
        each = described.get(label, {})
        parameters = json.dumps(each.get("parameters", {}), ensure_ascii=False)
        cells.append((label, _or_unknown(each.get("route")), _code(parameters if each else None)))
    note = html('<p class="faint">A seed grows by one from epoch to epoch.</p>') if '"seed"' in str(cells) else Html()
    return html("{}{}", table(("Label", "Route", "Parameters"), cells, caption="Routes"), note)


def _models(known: Mapping[str, Any]) -> Html:
    cells = [(model["route"], _code(model["digest"]), model["requests"]) for model in known["models"]]
    if not cells:
        return html('<p class="faint">No digest or version of a model is recorded.</p>')
    return table(("Route", "Digest or version", "Requests"), cells, caption="Models that answered")


def _texts(report: Analysis, known: Mapping[str, Any]) -> Iterator[Html]:
    task = report.run.spec.get("task", {})
    if task.get("system"):
        yield _text("System message", task["system"])
    routes = known.get("routes", {})
    prompts: dict[str, list[str]] = {}
    for label, each in routes.items() if isinstance(routes, Mapping) else ():
        prompts.setdefault(each.get("prompt", ""), []).append(label)
    for prompt, labels in prompts.items():
        yield _text(f"Prompt of {', '.join(labels)}", prompt)
    if task.get("output schema"):
        yield _text("Output schema", json.dumps(task["output schema"], indent=2, ensure_ascii=False))
    for metric, judge in report.judges.items():
        yield _text(f"Judge {metric}", "\n\n".join(f"{name}:\n{_plain(value)}" for name, value in judge.items()))


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _text(title: str, text: str) -> Html:
    return html('<details><summary>{}</summary><pre class="text">{}</pre></details>', title, text)
