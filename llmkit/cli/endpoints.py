"""`llmkit endpoints`: the servers that routes can name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmkit.cli.output import AsJson, make_table, print_json, print_rich
from llmkit.errors import LLMBadRequest, LLMConfigurationError
from llmkit.settings import find_endpoint_files, load_settings

if TYPE_CHECKING:
    from llmkit.settings import LLMSettings

__all__ = ["endpoints_app"]

endpoints_app = typer.Typer(help="List, add and remove the servers that routes can name.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name of the endpoint: the first part of its routes.")]
InUserFile = Annotated[bool, typer.Option("--user", help="In your own configuration folder, for all projects.")]


@endpoints_app.command("list")
def endpoints_list(as_json: AsJson = False) -> None:
    """List every endpoint with its kind, address, default model and what it can do. Sends nothing."""
    from rich.markup import escape

    rows = _describe_endpoints(load_settings())
    if as_json:
        print_json(rows)
        return
    table = make_table("endpoint", "kind", "address", "model", "can", "from")
    for row in rows:
        can = f"not usable: {row['problem']}" if row["problem"] else ", ".join(row["can"])
        address = row["api_base"] or "this machine"
        table.add_row(*map(escape, (row["name"], row["kind"], address, row["model"], can, row["source"])))
    print_rich(table)


def _describe_endpoints(settings: LLMSettings) -> list[dict[str, Any]]:
    from llmkit.providers import list_capabilities, load_endpoints

    return [
        {
            "name": str(name),
            "kind": spec.kind,
            "api_base": spec.address(settings),
            "model": spec.default_model(settings),
            "can": list_capabilities(spec),
            "source": settings.endpoints[str(name)].source if str(name) in settings.endpoints else "built in",
            "problem": spec.configuration_problem(settings),
        }
        for name, spec in load_endpoints(settings).items()
    ]


@endpoints_app.command("add")
def endpoints_add(  # noqa: PLR0913 - options of a command
    name: Name,
    kind: Annotated[
        str, typer.Option(help="Its protocol: openai, anthropic, ollama, gemini, or one that a package adds.")
    ],
    model: Annotated[str, typer.Option(help="Model of calls that name none.")],
    api_base: Annotated[str | None, typer.Option(help="Its address; default the kind's own.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Name of the variable with its key, not the key.")] = None,
    local: Annotated[
        bool | None, typer.Option("--local/--not-local", help="Whether it stays on your own machines.")
    ] = None,
    profiles: Annotated[
        list[str] | None, typer.Option("--profile", help="Profile that prefers it; repeatable.")
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(help="Most requests in any minute.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(help="Most tokens in any minute.")] = None,
    headers: Annotated[
        list[str] | None, typer.Option("--header", help="NAME=VALUE, sent with each request; repeatable.")
    ] = None,
    user: InUserFile = False,
    replace: Annotated[bool, typer.Option("--replace", help="Change an endpoint that the file has.")] = False,
) -> None:
    """Add an endpoint to llmkit.toml, in this folder. Nothing is written if it could not be used."""
    from llmkit.endpoints.editing import add_table
    from llmkit.endpoints.tables import BadEndpointError

    fields: dict[str, Any] = {
        "kind": kind,
        "api_base": api_base,
        "api_key_env": api_key_env,
        "model": model,
        "local": local,
        "profiles": profiles or None,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "headers": _split_headers(headers or []) or None,
    }
    given = {field: value for field, value in fields.items() if value is not None}
    path = find_endpoint_files()[1 if user else 0]
    _check(name, given, path)
    try:
        add_table(path, name, given, replace=replace)
    except BadEndpointError as error:
        raise LLMBadRequest(str(error)) from None
    typer.echo(f"Wrote [endpoints.{name}] to {path}. Try it: llmkit chat 'Say hi' --route {name}/{model}")
    if api_key_env and load_settings().endpoints[name].api_key == "":
        typer.echo(f"The variable {api_key_env} is empty: set it before the first call", err=True)


def _check(name: str, fields: Mapping[str, Any], path: Path) -> None:
    """Check that the endpoint could be used, as if it were in the file already.

    Raises:
        LLMConfigurationError: It could not; the message names file, table and field.
    """
    from llmkit.endpoints.tables import BadEndpointError, read_tables
    from llmkit.providers import load_endpoints

    try:
        endpoint = read_tables({name: fields}, str(path), lambda _variable: None, in_file=True)
    except BadEndpointError as error:
        raise LLMConfigurationError(str(error)) from None
    load_endpoints(load_settings(endpoints=endpoint))


def _split_headers(given: list[str]) -> dict[str, str]:
    pairs = [each.partition("=") for each in given]
    wrong = next((pair for pair in pairs if not pair[0] or not pair[1]), None)
    if wrong is not None:
        raise LLMBadRequest("A header is written NAME=VALUE, for example --header X-Title=study")
    return {name.strip(): value.strip() for name, _, value in pairs}


@endpoints_app.command("remove")
def endpoints_remove(name: Name, user: InUserFile = False) -> None:
    """Remove an endpoint from llmkit.toml. Recorded runs and reports keep its name."""
    from llmkit.endpoints.editing import remove_table
    from llmkit.endpoints.tables import BadEndpointError

    path = find_endpoint_files()[1 if user else 0]
    try:
        was_there = remove_table(path, name)
    except BadEndpointError as error:
        raise LLMBadRequest(str(error)) from None
    if not was_there:
        raise LLMBadRequest(f"{path} has no [endpoints.{name}]; `llmkit endpoints list` shows where each comes from")
    typer.echo(f"Removed [endpoints.{name}] from {path}")
