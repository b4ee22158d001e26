"""`llmkit eval compare` and `llmkit eval gate`: a run against a baseline, with a verdict as exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llmkit.cli.output import (
    AsJson,
    JUnitFile,
    MarkdownFile,
    Workspace,
    print_json,
    print_rich,
    require_places,
    table,
    write_text,
)
from llmkit.errors import LLMBadRequest

if TYPE_CHECKING:
    from pathlib import Path

    from llmkit.evals.gate import GateReport, GateRules

__all__ = ["eval_compare", "eval_gate"]

EXIT_OK, EXIT_FAILED = 0, 1

Run = Annotated[str, typer.Argument(help="Name of the run.")]
Baseline = Annotated[
    str | None, typer.Argument(help="Name of the run to compare with; none compares two routes of RUN.")
]
RouteOption = Annotated[str | None, typer.Option("--route", help="Route of RUN; default all.")]
BaselineRoute = Annotated[
    str | None, typer.Option("--baseline-route", help="What it is compared with; default the route of the same name.")
]
Metrics = Annotated[list[str] | None, typer.Option("--metric", help="Only this metric; may stand several times.")]
Margin = Annotated[
    float | None,
    typer.Option(min=0, help="Largest loss that is accepted: the comparison has to show that there is no larger one."),
]
Alpha = Annotated[float, typer.Option(help="Chance of a wrong verdict.")]
Failures = Annotated[
    Literal["as-zero", "excluded"], typer.Option(help="Whether failed answers count as 0 or are left out.")
]
MaxLeftOut = Annotated[
    float, typer.Option(min=0, max=1, help="Largest share of samples that only one side has a score for.")
]


def eval_compare(  # noqa: PLR0913 - options of a command
    run: Run,
    baseline: Baseline = None,
    route: RouteOption = None,
    baseline_route: BaselineRoute = None,
    metric: Metrics = None,
    margin: Margin = None,
    alpha: Alpha = 0.05,
    failures: Failures = "as-zero",
    max_left_out: MaxLeftOut = 0.1,
    junit: JUnitFile = None,
    markdown: MarkdownFile = None,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Compare two runs, or two routes of one run, on the same samples. Calls nothing.

    With --margin it is a gate too: exit code 1 when it is not shown that the loss is within the margin.
    """
    from llmkit.evals.gate import GateRules

    require_places(junit, markdown)
    rules = GateRules(
        metrics=tuple(metric or ()), margin=margin, max_left_out=max_left_out, alpha=alpha, failures=failures
    )
    gate = _checked(workspace, run, baseline, rules, (route, baseline_route), is_compared=True)
    _tell(gate, junit, markdown, as_json=as_json)
    raise typer.Exit(EXIT_FAILED if margin is not None and not gate.passed else EXIT_OK)


def eval_gate(  # noqa: PLR0913 - options of a command
    run: Run,
    baseline: Baseline = None,
    route: RouteOption = None,
    baseline_route: BaselineRoute = None,
    metric: Metrics = None,
    margin: Margin = None,
    minimum: Annotated[
        list[str] | None, typer.Option("--min", help="METRIC=VALUE: least mean; may stand several times.")
    ] = None,
    max_failed: Annotated[
        float | None, typer.Option(min=0, max=1, help="Largest share of samples that may have failed.")
    ] = None,
    alpha: Alpha = 0.05,
    failures: Failures = "as-zero",
    max_left_out: MaxLeftOut = 0.1,
    junit: JUnitFile = None,
    markdown: MarkdownFile = None,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Check a run, for CI. Exit code 0 when all holds, 1 when something does not. Calls nothing.

    Against a baseline: without --margin, no metric may be significantly worse; with it, every comparison has to show
    that the loss is within the margin.
    """
    from llmkit.evals.gate import GateRules

    require_places(junit, markdown)
    is_compared = baseline is not None or baseline_route is not None
    if not is_compared and not minimum and max_failed is None:
        raise LLMBadRequest("A gate needs a BASELINE, --baseline-route, --min or --max-failed")
    rules = GateRules(
        metrics=tuple(metric or ()),
        margin=margin,
        minimums=dict(_minimum(text) for text in minimum or ()),
        max_failed=max_failed,
        max_left_out=max_left_out,
        alpha=alpha,
        failures=failures,
    )
    gate = _checked(workspace, run, baseline, rules, (route, baseline_route), is_compared=is_compared)
    _tell(gate, junit, markdown, as_json=as_json)
    raise typer.Exit(EXIT_OK if gate.passed else EXIT_FAILED)


def _minimum(text: str) -> tuple[str, float]:
    metric, _, value = text.rpartition("=")
    try:
        return metric.strip(), float(value)
    except ValueError:
        raise LLMBadRequest(f"--min is written METRIC=VALUE; got {text!r}") from None


def _checked(
    workspace: str | None,
    run: str,
    baseline: str | None,
    rules: GateRules,
    routes: tuple[str | None, str | None],
    *,
    is_compared: bool,
) -> GateReport:
    from llmkit.evals.gate import check_gate, matched_routes
    from llmkit.session import Session

    with Session(workspace) as session:
        report = session.report(run)
        other = None if baseline is None else session.report(baseline)
    pairs = matched_routes(report, other, *routes) if is_compared else ()
    return check_gate(report, rules, baseline=other, routes=pairs)


def _tell(gate: GateReport, junit: Path | None, markdown: Path | None, *, as_json: bool) -> None:
    from llmkit.evals.for_ci import gate_junit, gate_markdown

    write_text(junit, gate_junit(gate))
    write_text(markdown, gate_markdown(gate))
    if as_json:
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


def _cells(row: Any) -> list[str]:
    interval = f"{row['difference']:+.3f} [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"
    names = [row["metric"], row["route"], row["baseline"], str(row["pairs"])]
    return [*names, f"{row['mean']:.3f}", f"{row['baseline_mean']:.3f}", interval, f"{row['p_holm']:.3g}"]
