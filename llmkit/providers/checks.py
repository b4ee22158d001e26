"""Results of checks of the set-up, and what a provider's own check is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from llmkit.providers.model_facts import ModelFacts

__all__ = ["Check", "CheckState", "PulledModel", "ServerState"]


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


@dataclass(frozen=True, slots=True)
class PulledModel:
    """A model that a server has.

    Attributes:
        name: The name that the server lists, with its tag.
        size_bytes: Size on disk; None when not reported.
        facts: Empty when the server reported no details.
    """

    name: str
    size_bytes: int | None
    facts: ModelFacts


@dataclass(frozen=True, slots=True)
class ServerState:
    """State of a server, as it reports it."""

    version: str
    models: tuple[PulledModel, ...]
