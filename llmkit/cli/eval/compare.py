"""`llmkit eval compare` and `llmkit eval gate`: a run against a baseline, with a verdict as exit code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llmkit.cli.option_groups import GateOutput, grouped
from llmkit.cli.output import print_json, print_rich, table, write_text
from llmkit.errors import LLMBadRequest

if TYPE_CHECKING:
    from llmkit.evals.ci.gate import GateReport, GateRules

__all__ = ["eval_compare", "eval_gate"]

EXIT_OK, EXIT_FAILED = 0, 1
SHOWN_DIGITS = 12
SHOWN_HASHES = {"task": "task_sha256", "dataset": "dataset_sha256", "scorers": "scorers_sha256", "commit": "commit"}

Run = Annotated[str, typer.Argument(help="Name of the run.")]
Baseline = Annotated[
    str | None, typer.Argument(help="Name of the run to compare with; none compares two routes of RUN.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What is compared with what, and by which rules."""

    route: Annotated[str | None, typer.Option(help="Route of RUN; default all.")] = None
    baseline_route: Annotated[
        str | None, typer.Option(help="What it is compared with; default the route of the same name.")
    ] = None
    metric: Annotated[list[str] | None, typer.Option(help="Only this metric; may stand several times.")] = None
    margin: Annotated[
        float | None,
        typer.Option(min=0, help="Largest loss that is accepted: it has to be shown that there is no larger one."),
    ] = None
    alpha: Annotated[float, typer.Option(help="Chance of a wrong verdict.")] = 0.05
    failures: Annotated[
        Literal["as-zero", "excluded"], typer.Option(help="Whether failed answers count as 0 or are left out.")
    ] = "as-zero"
    max_left_out: Annotated[
        float, typer.Option(min=0, max=1, help="Largest share of samples that only one side has a score for.")
    ] = 0.1

    def rules(
        self,
        minimums: Mapping[str, float] | None = None,
        maximums: Mapping[str, float] | None = None,
        max_failed: float | None = None,
    ) -> GateRules:
        """What is asked of the run.

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
        )


@grouped
def eval_compare(run: Run, comparison: Comparison, output: GateOutput, baseline: Baseline = None) -> None:
    """Compare two runs, or two routes of one run, on the same samples. Calls nothing.

    With --margin it is a gate too: exit code 1 when it is not shown that the loss is within the margin.
    """
    output.require_places()
    gate = _checked(run, baseline, comparison, comparison.rules(), output, is_compared=True)
    _tell(gate, output)
    raise typer.Exit(EXIT_FAILED if comparison.margin is not None and not gate.passed else EXIT_OK)


@grouped
def eval_gate(
    run: Run,
    comparison: Comparison,
    output: GateOutput,
    baseline: Baseline = None,
    minimum: Annotated[
        list[str] | None, typer.Option("--min", help="METRIC=VALUE: least mean; may stand several times.")
    ] = None,
    maximum: Annotated[
        list[str] | None,
        typer.Option("--max", help="METRIC=VALUE: largest mean, where less is better; may stand several times."),
    ] = None,
    max_failed: Annotated[
        float | None, typer.Option(min=0, max=1, help="Largest share of samples that may have failed.")
    ] = None,
) -> None:
    """Check a run, for CI. Exit code 0 when all holds, 1 when something does not. Calls nothing.

    Against a baseline: without --margin, no metric may be significantly worse; with it, every comparison has to show
    that the loss is within the margin.
    """
    output.require_places()
    is_compared = baseline is not None or comparison.baseline_route is not None
    if not is_compared and not minimum and not maximum and max_failed is None:
        raise LLMBadRequest("A gate needs a BASELINE, --baseline-route, --min, --max or --max-failed")
    rules = comparison.rules(_means("--min", minimum), _means("--max", maximum), max_failed)
    gate = _checked(run, baseline, comparison, rules, output, is_compared=is_compared)
    _tell(gate, output)
    raise typer.Exit(EXIT_OK if gate.passed else EXIT_FAILED)


def _means(option: str, texts: Sequence[str] | None) -> dict[str, float]:
    return dict(_mean(option, text) for text in texts or ())


def _mean(option: str, text: str) -> tuple[str, float]:
    metric, _, value = text.rpartition("=")
    try:
        return metric.strip(), float(value)
    except ValueError:
        raise LLMBadRequest(f"{option} is written METRIC=VALUE; got {text!r}") from None


def _checked(
    run: str, baseline: str | None, comparison: Comparison, rules: GateRules, output: GateOutput, *, is_compared: bool
) -> GateReport:
    from llmkit.evals.ci.gate import check_gate, matched_routes
    from llmkit.session import Session

    with Session(output.workspace) as session:
        report = session.report(run)
        other = None if baseline is None else session.report(baseline)
    pairs = matched_routes(report, other, comparison.route, comparison.baseline_route) if is_compared else ()
    only = () if is_compared or comparison.route is None else (comparison.route,)
    return check_gate(report, rules, baseline=other, routes=pairs, only=only)


def _tell(gate: GateReport, output: GateOutput) -> None:
    from llmkit.evals.ci.junit import gate_junit
    from llmkit.evals.ci.markdown import gate_markdown

    write_text(output.junit, gate_junit(gate))
    write_text(output.markdown, gate_markdown(gate))
    if output.as_json:
        print_json(gate.to_json())
        return
    _print(gate)


def _print(gate: GateReport) -> None:
    from rich.markup import escape

    compared = table("metric", "route", "baseline", "pairs", "mean", "baseline mean", "difference [95 %]", "p (Holm)")
    for row in gate.comparisons:
        compared.add_row(*(escape(cell) for cell in _cells(row)))
    if gate.comparisons:
        print_rich(compared)
    checks = table("", "check", "numbers")
    for check in gate.checks:
        checks.add_row("[green]pass[/]" if check.passed else "[red]FAIL[/]", escape(check.title), escape(check.detail))
    print_rich(checks)
    for note in gate.notes:
        print_rich(escape(note))
    for line in _compared(gate):
        print_rich(escape(line))


def _compared(gate: GateReport) -> Iterator[str]:
    """What each side is, in a line: a hash by its beginning."""
    names = {"run": gate.run, "baseline": gate.baseline}
    for side, told in gate.sides.items():
        hashes = ", ".join(f"{what} {told[key][:SHOWN_DIGITS]}" for what, key in SHOWN_HASHES.items() if key in told)
        release = told.get("version of llmkit", "unknown")
        yield f"{side} {names[side]}: task {told['task']} ({hashes}), llmkit {release}"


def _cells(row: Any) -> list[str]:
    interval = f"{row['difference']:+.3f} [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"
    names = [row["metric"], row["route"], row["baseline"], str(row["pairs"])]
    return [*names, f"{row['mean']:.3f}", f"{row['baseline_mean']:.3f}", interval, f"{row['p_holm']:.3g}"]
