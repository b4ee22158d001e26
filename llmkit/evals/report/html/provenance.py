"""Provenance of the run: hashes, versions, models, prompts, settings and seeds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from llmkit.evals.report.html.cells import (
    Block,
    Cell,
    CodeText,
    Definitions,
    FaintText,
    FoldedText,
    Section,
    Table,
    TaggedFacts,
    format_count,
)

if TYPE_CHECKING:
    from llmkit.evals.report.analysis import Analysis

__all__ = ["build_provenance_section"]


def build_provenance_section(report: Analysis, *, stable: bool) -> Section:
    """Build the section with everything that is needed to run the evaluation again."""
    provenance = report.provenance
    blocks: list[Block] = [Definitions(tuple(_build_facts(report, provenance, stable=stable)))]
    blocks += [*_build_variants(report, provenance), _build_models(provenance), *_build_texts(report, provenance)]
    return Section("run", "What was run", tuple(blocks))


def _build_facts(report: Analysis, provenance: Mapping[str, Any], *, stable: bool) -> Iterator[tuple[str, Cell]]:
    run = report.run
    yield "Run", run.name
    if not stable:
        yield "Id of the run", CodeText(str(run.id))
        yield "Begun", f"{run.created_at_utc:%Y-%m-%d %H:%M:%S} UTC"
    yield "Task", run.task_name
    yield "Hash of the task", CodeText(run.task_sha256)
    yield "Hash of the dataset", CodeText(run.dataset_sha256)
    yield "Hash of the scorers", _make_code(provenance.get("scorers_sha256"))
    yield "Samples in the dataset", _make_text(provenance.get("samples"))
    yield "Epochs", _make_text(provenance.get("epochs"))
    yield "Commit of the code around the task", _make_code(provenance.get("commit"))
    yield "Python", _make_text(provenance.get("python"))
    yield "Platform", _make_text(provenance.get("platform"))
    for name, title in (("packages", "Packages"), ("settings", "Settings"), ("options", "Options")):
        values = provenance.get(name) or {}
        yield title, TaggedFacts(tuple(f"{key} {value}" for key, value in values.items())) if values else None


def _make_code(value: Any) -> CodeText | None:
    return None if value is None else CodeText(str(value))


def _make_text(value: Any) -> str | None:
    if value is None:
        return None
    return format_count(value) if isinstance(value, int) else str(value)


def _build_variants(report: Analysis, provenance: Mapping[str, Any]) -> Iterator[Block]:
    described = _get_routes(provenance)
    rows, has_seed = [], False
    for label in report.variants:
        variant = described.get(label, {})
        parameters = json.dumps(variant.get("parameters", {}), ensure_ascii=False)
        has_seed = has_seed or '"seed"' in parameters
        rows.append((label, _make_text(variant.get("route")), CodeText(parameters) if variant else None))
    yield Table.from_rows(("Label", "Route", "Parameters"), rows, caption="Variants")
    if has_seed:
        yield FaintText("A seed grows by one from epoch to epoch.")


def _get_routes(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the variants by label. Runs of early versions stored a list of labels, without a description."""
    routes = provenance.get("routes", {})
    return routes if isinstance(routes, Mapping) else {}


def _build_models(provenance: Mapping[str, Any]) -> Block:
    rows = [(model["route"], CodeText(model["digest"]), model["requests"]) for model in provenance["models"]]
    if not rows:
        return FaintText("No digest or version of a model is recorded.")
    return Table.from_rows(("Route", "Digest or version", "Requests"), rows, caption="Models that answered")


def _build_texts(report: Analysis, provenance: Mapping[str, Any]) -> Iterator[FoldedText]:
    task = report.run.spec.get("task", {})
    if task.get("system"):
        yield FoldedText("System message", task["system"])
    labels_by_prompt: dict[str, list[str]] = {}
    for label, variant in _get_routes(provenance).items():
        labels_by_prompt.setdefault(variant.get("prompt", ""), []).append(label)
    for prompt, labels in labels_by_prompt.items():
        if not prompt:  # the answers were supplied
            continue
        yield FoldedText(f"Prompt of {', '.join(labels)}", prompt)
    if task.get("output schema"):
        yield FoldedText("Output schema", json.dumps(task["output schema"], indent=2, ensure_ascii=False))
    for metric, judge in report.judges.items():
        parts = (
            f"{name}:\n{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
            for name, value in judge.items()
        )
        yield FoldedText(f"Judge {metric}", "\n\n".join(parts))
