"""Facts about a single model beyond what its provider declares, each with its source and time.

Pure: values, and a registry of them in memory. `llmkit.discovery` queries servers and probes models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime
from threading import Lock
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from llmkit.types import ProviderCaps, Route

__all__ = ["NOTHING_KNOWN", "Fact", "FactBook", "FactOrigin", "ModelFacts", "make_declared_facts"]

FactOrigin = Literal["declared", "reported", "probed"]
T = TypeVar("T", bound=bool | int | str)

SHOWN_DIGEST_CHARS = 12


@dataclass(frozen=True, slots=True)
class Fact(Generic[T]):
    """One fact of a model.

    Attributes:
        value: The fact itself.
        source: `declared` by llmkit for the whole provider, `reported` by the server, `probed` by trying it.
        at_utc: When it was reported or probed; None for what is declared.
    """

    value: T
    source: FactOrigin
    at_utc: datetime | None = None

    def __str__(self) -> str:
        return f"{_format_fact(self.value)} ({self.source})"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Facts about one model; None where nothing is known.

    Attributes:
        tools: Whether it can call tools.
        json_schema: Whether its answers are constrained to a schema.
        json_object: Whether it writes JSON when any JSON is asked for.
        tools_with_schema: Whether it takes tools and a schema in one request.
        images: Whether it reads images.
        logprobs: Whether it sends the log-probabilities of its tokens.
        seed: Whether equal requests with one seed get equal answers.
        usage: Whether the server counts tokens.
        context_tokens: Size of its context window.
        digest: Identifies its weights and template: a new digest is another model under the same name.
    """

    tools: Fact[bool] | None = None
    json_schema: Fact[bool] | None = None
    json_object: Fact[bool] | None = None
    tools_with_schema: Fact[bool] | None = None
    images: Fact[bool] | None = None
    logprobs: Fact[bool] | None = None
    seed: Fact[bool] | None = None
    usage: Fact[bool] | None = None
    context_tokens: Fact[int] | None = None
    digest: Fact[str] | None = None

    def __repr__(self) -> str:
        return f"ModelFacts({', '.join(f'{name}={fact}' for name, fact in self)})"

    def __iter__(self) -> Iterator[tuple[str, Fact[Any]]]:
        for each in fields(self):
            fact = getattr(self, each.name)
            if fact is not None:
                yield each.name, fact

    def over(self, weaker: ModelFacts) -> ModelFacts:
        """Return these facts, with gaps filled from weaker ones."""
        return replace(weaker, **dict(self))

    def refine(self, caps: ProviderCaps) -> ProviderCaps:
        """Return the provider's capabilities as far as this model has them."""
        known = {_CAPS_FIELDS[name]: fact.value for name, fact in self if name in _CAPS_FIELDS}
        return caps.model_copy(update=known)

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Return JSON-able facts by name: `value`, `source` and `at_utc` (ISO 8601, null when declared)."""
        return {
            name: {
                "value": fact.value,
                "source": fact.source,
                "at_utc": None if fact.at_utc is None else fact.at_utc.isoformat(),
            }
            for name, fact in self
        }

    def __str__(self) -> str:
        return ", ".join(f"{_LABELS[name]}: {fact}" for name, fact in self)


NOTHING_KNOWN = ModelFacts()

_CAPS_FIELDS: Mapping[str, str] = {
    "tools": "supports_tools",
    "json_schema": "supports_json_schema",
    "images": "supports_images",
    "logprobs": "supports_logprobs",
    "context_tokens": "max_context_tokens",
}
_LABELS: Mapping[str, str] = {
    "tools": "tools",
    "json_schema": "schema",
    "json_object": "any JSON",
    "tools_with_schema": "tools with a schema",
    "images": "images",
    "logprobs": "log-probabilities",
    "seed": "seed",
    "usage": "token counts",
    "context_tokens": "context",
    "digest": "digest",
}


def make_declared_facts(
    caps: ProviderCaps, context_tokens: int | None, *, tools_by_model: bool = False, images_by_model: bool = False
) -> ModelFacts:
    """Return the facts that hold for every model of a provider.

    Args:
        caps: The provider's capabilities.
        context_tokens: Its context window; None when it depends on the model.
        tools_by_model: Whether tools depend on the model, so that undeclared ones are unknown, not absent.
        images_by_model: The same for images.
    """
    return ModelFacts(
        tools=None if tools_by_model and not caps.supports_tools else Fact(caps.supports_tools, "declared"),
        json_schema=Fact(caps.supports_json_schema, "declared"),
        images=None if images_by_model and not caps.supports_images else Fact(caps.supports_images, "declared"),
        context_tokens=None if context_tokens is None else Fact(context_tokens, "declared"),
    )


def _format_fact(value: bool | int | str) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,} tokens" if isinstance(value, int) else value[:SHOWN_DIGEST_CHARS]


class _Entry(NamedTuple):
    reported: ModelFacts = NOTHING_KNOWN
    probed: ModelFacts = NOTHING_KNOWN
    probed_digest: str | None = None


class FactBook:
    """The facts about all models, by route; thread-safe. A probed fact overrides a reported one.

    A probe is valid for the digest that it was made on: once the server reports another one, it is ignored.

    Attributes:
        version: Increases with every change.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._entries: dict[Route, _Entry] = {}
        self._known: dict[Route, ModelFacts] = {}
        self.version = 0

    def of(self, route: Route) -> ModelFacts:
        """Return the facts about the model beyond what its provider declares."""
        return self._known.get(route, NOTHING_KNOWN)

    def report(self, route: Route, facts: ModelFacts) -> None:
        """Store the facts that the server reports; `NOTHING_KNOWN` forgets earlier ones."""
        self._change(route, reported=facts)

    def probe(self, route: Route, facts: ModelFacts, digest: str | None) -> None:
        """Store the result of a probe.

        Args:
            route: The model.
            facts: The result; `NOTHING_KNOWN` forgets an earlier probe.
            digest: The model's digest at the time; None when unknown; the probe is then valid for any digest.
        """
        self._change(route, probed=facts, probed_digest=digest)

    def _change(self, route: Route, **changes: Any) -> None:
        with self._lock:
            entry = self._entries.get(route, _Entry())._replace(**changes)
            self._entries[route] = entry
            self._known[route] = _merge_facts(entry)
            self.version += 1


def _merge_facts(entry: _Entry) -> ModelFacts:
    digest = entry.reported.digest
    is_other = digest is not None and entry.probed_digest is not None and digest.value != entry.probed_digest
    return entry.reported if is_other else entry.probed.over(entry.reported)
