"""`llmkit eval check`: samples as they will be sent, and their targets as they will be compared."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmkit.cli.exit_codes import EXIT_FAILED, EXIT_OK
from llmkit.cli.option_groups import DataOptions, expand_groups
from llmkit.cli.output import AsJson, print_json, print_rich

if TYPE_CHECKING:
    from llmkit.evals.preview import Preview, SamplePreview

__all__ = ["eval_check"]


@expand_groups
def eval_check(
    file: Annotated[Path, typer.Argument(help="A task file, as for `eval run`.")],
    data: DataOptions,
    count: Annotated[int, typer.Option("--count", "-n", min=0, help="Number of samples to show.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Show samples as they will be sent, their targets as they will be compared, and what was converted. Calls nothing.

    The whole dataset is checked as before a run. Exit code 1 if a run would be refused.
    """
    from llmkit.evals import load_tasks
    from llmkit.evals.preview import preview_task

    previews = [preview_task(data.apply(task), count) for task in load_tasks(file)]
    if as_json:
        documents = [_describe(preview) for preview in previews]
        print_json(documents[0] if len(documents) == 1 else documents)
    else:
        for preview in previews:
            _print_preview(preview)
    raise typer.Exit(EXIT_FAILED if any(preview.refused for preview in previews) else EXIT_OK)


def _describe(preview: Preview) -> dict[str, Any]:
    """Return a preview as one JSON document. Attachments are left out."""
    from pydantic_core import to_jsonable_python

    document: dict[str, Any] = {**asdict(preview), "shown": []}
    for sample in preview.shown:
        messages = [{"role": message.role, "content": message.content} for message in sample.messages]
        document["shown"].append({**asdict(sample), "messages": messages})
    plain: dict[str, Any] = to_jsonable_python(document, fallback=repr)
    return plain


def _print_preview(preview: Preview) -> None:
    from rich.markup import escape

    # A list has no name that says more than what it is.
    where = "" if preview.source == "samples" else f" of {preview.source}"
    counts = [f"{preview.samples:,} sample{'' if preview.samples == 1 else 's'}{where}"]
    counts += [f"{preview.groups:,} group{'' if preview.groups == 1 else 's'}"] if preview.groups else []
    counts += [f"{preview.without_target:,} without a target"] if preview.without_target else []
    print_rich(escape(f"{preview.task}: {', '.join(counts)}."))
    for number, sample in enumerate(preview.shown, start=1):
        print_rich("")
        _print_sample(sample, number)
    print_rich("")
    if preview.converted:
        changes = "; ".join(f"{kind} ({count:,})" for kind, count in preview.converted.items())
        print_rich(escape(f"Converted targets: {changes}."))
    if preview.refused:
        print_rich(escape(f"A run would be refused, because of {preview.refused:,} of {preview.samples:,} samples:"))
        for problem in preview.problems:
            print_rich(escape(f"- {problem}"))
    else:
        print_rich("All prompts can be filled, and all targets can be compared.")


def _print_sample(sample: SamplePreview, number: int) -> None:
    from pydantic_core import to_jsonable_python
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    parts = [f"Sample {number}", sample.id, sample.place, "" if sample.group is None else f"group {sample.group}"]
    print_rich(f"[bold]{escape(' | '.join(part for part in parts if part))}[/bold]")
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")

    def add(label: str, value: Any) -> None:
        plain = to_jsonable_python(value, by_alias=True, fallback=repr)
        table.add_row(f"  {label}", Text(value if isinstance(value, str) else json.dumps(plain, ensure_ascii=False)))

    for message in sample.messages:
        files = "".join(f" [{attachment.media_type}]" for attachment in message.attachments)
        add(message.role, f"{message.content}{files}")
    if sample.target is None:
        add("target", "none: no answer can be scored against it")
    else:
        add("target", to_jsonable_python(sample.compared, by_alias=True, fallback=repr))
    for change in sample.converted:
        add("", f"converted {change}")
    if sample.problem:
        add("", f"refused: {sample.problem}")
    for scorer, text in sample.read.items():
        add("", f"{scorer} reads {text}")
    if sample.metadata:
        add("metadata", dict(sample.metadata))
    print_rich(table)
