"""`llmkit eval compare` and `llmkit eval gate`: comparison of runs, with the verdict as exit code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llmkit.cli.eval.report import read_with_task
from llmkit.cli.exit_codes import EXIT_FAILED, EXIT_OK
from llmkit.cli.option_groups import GateOutput, expand_groups
from llmkit.cli.output import make_table, print_json, print_rich, write_text
from llmkit.errors import LLMBadRequest

if TYPE_CHECKING:
    from llmkit.evals.ci.gate import GateReport, GateRules

__all__ = ["eval_compare", "eval_gate"]

SHOWN_DIGITS = 12
SHOWN_HASHES = {"task": "task_sha256", "dataset": "dataset_sha256", "scorers": "scorers_sha256", "commit": "commit"}

Run = Annotated[str, typer.Argument(help="Name of the run.")]
Baseline = Annotated[
    str | None, typer.Argument(help="Name of the run to compare with; omit it to compare two routes of RUN.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The two sides of a comparison, and its rules."""

    route: Annotated[str | None, typer.Option(help="Route of RUN; default all.")] = None
    baseline_route: Annotated[
        str | None, typer.Option(help="Route of BASELINE to compare with; default the same route.")
    ] = None
    metric: Annotated[list[str] | None, typer.Option(help="Only this metric; repeatable.")] = None
    margin: Annotated[
        float | None,
        typer.Option(min=0, help="Largest acceptable loss; the data must show that the loss is not larger."),
    ] = None
    alpha: Annotated[float, typer.Option(help="Significance level: the chance of a wrong verdict.")] = 0.05
    failures: Annotated[
        Literal["as-zero", "excluded"], typer.Option(help="Count failed answers as 0, or exclude them.")
    ] = "as-zero"
    max_left_out: Annotated[
        float, typer.Option(min=0, max=1, help="Largest share of samples that only one side has scored.")
    ] = 0.1
    by: Annotated[
        str | None, typer.Option(metavar="FIELD", help="Check every slice as well: group, metadata.NAME or input.NAME.")
    ] = None
    task: Annotated[
        Path | None, typer.Option("--task", help="The task file, whose samples slices by anything but group need.")
    ] = None

    def make_rules(
        self,
        minimums: Mapping[str, float] | None = None,
        maximums: Mapping[str, float] | None = None,
        max_failed: float | None = None,
    ) -> GateRules:
        """Build the rules of the gate.

        Raises:
            LLMEvaluationError: A number is out of range.
        """
        from llmkit.evals.ci.gate import GateRules

        return GateRules(
            metrics=tuple(self.metric or ()),
            margin=self.margin,
            minimums=minimums or {},
            maximums=maximums or {},
            max_failed=max_failed,
            max_left_out=self.max_left_out,
            alpha=self.alpha,
            failures=self.failures,
            by=self.by,
        )


@expand_groups
def eval_compare(run: Run, comparison: Comparison, output: GateOutput, baseline: Baseline = None) -> None:
    """Compare two runs, or two routes of one run, on the same samples. Calls nothing.

    With --margin, exit code 1 unless the data show that the loss is within the margin.
    """
    output.require_writable()
    gate = _check_run(run, baseline, comparison, comparison.make_rules(), output, is_compared=True)
    _output_gate(gate, output)
    raise typer.Exit(EXIT_FAILED if comparison.margin is not None and not gate.passed else EXIT_OK)


@expand_groups
def eval_gate(
    run: Run,
    comparison: Comparison,
    output: GateOutput,
    baseline: Baseline = None,
    minimum: Annotated[
        list[str] | None, typer.Option("--min", help="METRIC=VALUE: smallest acceptable mean; repeatable.")
    ] = None,
    maximum: Annotated[
        list[str] | None,
        typer.Option("--max", help="METRIC=VALUE: largest acceptable mean, where less is better; repeatable."),
    ] = None,
    max_failed: Annotated[
        float | None, typer.Option(min=0, max=1, help="Largest acceptable share of failed samples.")
    ] = None,
) -> None:
    """Check a run in CI: exit code 0 if every check passes, 1 otherwise. Calls nothing.

    Against a baseline, no metric may be significantly worse. With --margin, every comparison must show that the loss
    is within the margin.
    """
    output.require_writable()
    is_compared = baseline is not None or comparison.baseline_route is not None
    if not is_compared and not minimum and not maximum and max_failed is None:
        raise LLMBadRequest("A gate needs a BASELINE, --baseline-route, --min, --max or --max-failed")
    rules = comparison.make_rules(_parse_means("--min", minimum), _parse_means("--max", maximum), max_failed)
    gate = _check_run(run, baseline, comparison, rules, output, is_compared=is_compared)
    _output_gate(gate, output)
    raise typer.Exit(EXIT_OK if gate.passed else EXIT_FAILED)


def _parse_means(option: str, texts: Sequence[str] | None) -> dict[str, float]:
    return dict(_parse_mean(option, text) for text in texts or ())


def _parse_mean(option: str, text: str) -> tuple[str, float]:
    metric, _, value = text.rpartition("=")
    try:
        return metric.strip(), float(value)
    except ValueError:
        raise LLMBadRequest(f"{option} must be written METRIC=VALUE; got {text!r}") from None


def _check_run(
    run: str, baseline: str | None, comparison: Comparison, rules: GateRules, output: GateOutput, *, is_compared: bool
) -> GateReport:
    from llmkit.evals.ci.gate import check_gate, match_variants
    from llmkit.session import Session

    with Session(output.workspace, warm_up=False) as session:
        report = read_with_task(session, run, comparison.task)
        other = None if baseline is None else read_with_task(session, baseline, comparison.task)
    pairs = match_variants(report, other, comparison.route, comparison.baseline_route) if is_compared else ()
    only = () if is_compared or comparison.route is None else (comparison.route,)
    return check_gate(report, rules, baseline=other, variants=pairs, only=only)


def _output_gate(gate: GateReport, output: GateOutput) -> None:
    from llmkit.evals.ci.junit import render_gate_junit
    from llmkit.evals.ci.markdown import render_gate_markdown

    write_text(output.junit, render_gate_junit(gate))
    write_text(output.markdown, render_gate_markdown(gate))
    if output.as_json:
        print_json(gate.to_json())
        return
    _print_gate(gate)


def _print_gate(gate: GateReport) -> None:
    from rich.markup import escape

    comparisons = make_table(
        *(["slice"] if gate.rules.by else []),
        *("metric", "variant", "baseline", "pairs", "mean", "baseline mean", "difference [95 %]", "p (Holm)"),
    )
    for row in gate.comparisons:
        place = [row["slice"] or "all"] if gate.rules.by else []
        comparisons.add_row(*(escape(cell) for cell in (*place, *_format_row(row))))
    if gate.comparisons:
        print_rich(comparisons)
    checks = make_table("", "check", "numbers")
    for check in gate.checks:
        checks.add_row("[green]pass[/]" if check.passed else "[red]FAIL[/]", escape(check.title), escape(check.detail))
    print_rich(checks)
    for note in gate.notes:
        print_rich(escape(note))
    for line in _describe_sides(gate):
        print_rich(escape(line))


def _describe_sides(gate: GateReport) -> Iterator[str]:
    """Yield one line for each side: task, hashes (shortened) and version."""
    names = {"run": gate.run, "baseline": gate.baseline}
    for side, facts in gate.sides.items():
        hashes = ", ".join(f"{what} {facts[key][:SHOWN_DIGITS]}" for what, key in SHOWN_HASHES.items() if key in facts)
        release = facts.get("version of llmkit", "unknown")
        yield f"{side} {names[side]}: task {facts['task']} ({hashes}), llmkit {release}"


def _format_row(row: Any) -> list[str]:
    interval = f"{row['difference']:+.3f} [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"
    names = [row["metric"], row["variant"], row["baseline"], str(row["pairs"])]
    return [*names, f"{row['mean']:.3f}", f"{row['baseline_mean']:.3f}", interval, f"{row['p_holm']:.3g}"]
