"""`llmkit init`: look for models, make one real call, and write a small study to begin with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkit.cli.output import Workspace, make_table, print_rich
from llmkit.errors import LLMBadRequest, LLMConfigurationError, LLMError
from llmkit.settings import load_settings

if TYPE_CHECKING:
    from llmkit.doctor import Check

__all__ = ["init"]


def init(
    folder: Annotated[Path, typer.Argument(help="Folder of the study; created if needed.")] = Path(),
    route: Annotated[
        str | None, typer.Option(help="A provider/model to use; default the first one that can be used.")
    ] = None,
    workspace: Workspace = None,
) -> None:
    """Find a model, make one real call, and write a small study: a task, its samples, and a notebook.

    Looks for Ollama and its models, keys, and the local model of `llmkit-research[local]`. Never overwrites a file.
    """
    from llmkit.cli.study import build_study
    from llmkit.doctor import examine, usable_routes
    from llmkit.notebook.arguments import parse_route

    if route is not None:
        parse_route(route)
    # Before the call, so that nothing is paid for a study that cannot be written.
    _require_new(folder / name for name in build_study(route or ""))
    checks = examine(load_settings())
    _print_findings(checks)
    chosen = _find_answering(usable_routes(checks) if route is None else (route,), checks, workspace)
    files = build_study(chosen)
    _write_files(folder, files)
    names = {Path(name).suffix: str(folder / name) for name in files}
    typer.echo(f"\nWrote {', '.join(names.values())}. Next:")
    typer.echo(f"  llmkit eval run {names['.py']} --routes {chosen} --name first")
    typer.echo(f"  jupyter lab {names['.ipynb']}        (pip install 'llmkit-research[notebook]' jupyterlab)")


def _is_provider(check: Check) -> bool:
    from llmkit.providers import load_endpoints

    return check.name in load_endpoints(load_settings())


def _print_findings(checks: Iterable[Check]) -> None:
    from rich.markup import escape

    table = make_table("provider", "found")
    for check in filter(_is_provider, checks):
        table.add_row(check.name, escape(check.detail))
    print_rich(table)


def _find_answering(routes: Sequence[str], checks: Iterable[Check], workspace: str | None) -> str:
    """Ask one question after the other until a model answers, and return its route.

    Raises:
        LLMConfigurationError: There is no model.
        LLMError: The only model has failed.
    """
    for number, route in enumerate(routes, start=1):
        try:
            _try_model(route, workspace)
        except LLMError as error:
            if number == len(routes):
                raise
            typer.echo(f"It failed: {error}", err=True)
        else:
            return route
    ways = "; ".join(f"{check.name}: {check.fix}" for check in checks if check.fix and _is_provider(check))
    raise LLMConfigurationError(f"No model can be used yet, and nothing was written. One of these is enough: {ways}")


def _try_model(route: str, workspace: str | None) -> None:
    from llmkit.cli.study import FIRST_TEXT, Sentiment, list_examples
    from llmkit.session import Session

    typer.echo(f"\nAsking {route} whether this is positive or negative:\n  {FIRST_TEXT}")
    with Session(workspace, warm_up=False) as session:
        answer = session.extract(Sentiment, FIRST_TEXT, examples=list_examples(), route=route, temperature=0)
    typer.echo(f"It answers: {answer.label}")


def _require_new(files: Iterable[Path]) -> None:
    there = [str(file) for file in files if file.exists() or file.is_symlink()]
    if there:
        raise LLMBadRequest(f"{', '.join(there)} exists already, and nothing was written: name another folder")


def _write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write all files, or none.

    Raises:
        LLMBadRequest: One exists or cannot be written.
    """
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            with (folder / name).open("x", encoding="utf-8", newline="\n") as file:
                written.append(folder / name)
                file.write(text)
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        raise LLMBadRequest(f"Cannot write {error.filename}: {error.strerror}; name another folder") from None
