"""A warning when another route than the first choice answers, so that a change of model is not overlooked."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable
from pathlib import Path

from llmkit.types import LLMResponse, Route

__all__ = ["FallbackWarner"]

PACKAGE_FOLDER = str(Path(__file__).parents[1])


class FallbackWarner:
    """Detects fallbacks in the loop's thread, and warns in the thread of the caller, once until `reset`."""

    def __init__(self) -> None:
        self._has_warned = False
        self._message: str | None = None
        self._first_choices: set[Route] = set()

    def reset(self) -> None:
        """Allow one more warning."""
        self._has_warned = False

    def check_responses(self, responses: Iterable[LLMResponse]) -> None:
        """Remember a warning if one of these was answered by another route than the first choice."""
        for response in responses:
            if response.requested_route is not None or response.plan is None or not response.plan.candidates:
                continue
            first = response.plan.candidates[0]
            self._first_choices.add(first)
            # Once a circuit breaker has excluded the first choice, it is no longer a candidate.
            excluded = [
                entry.route
                for entry in response.plan.entries
                if entry.excluded_because is not None and entry.route in self._first_choices
            ]
            preferred = excluded[0] if excluded else first
            if response.route != preferred and not self._has_warned:
                self._has_warned = True
                self._message = (
                    f"{response.route} answered, because the first choice, {preferred}, did not. Further fallbacks are "
                    "not reported; the column `route` shows them. To prevent them, pass route=... or "
                    "constraints=LLMConstraints(allow_fallback=False)"
                )

    def warn(self) -> None:
        """Issue the remembered warning, if any, for the caller's line outside llmkit."""
        message, self._message = self._message, None
        if message is None:
            return
        level, frame = 1, inspect.currentframe()
        while frame is not None and frame.f_code.co_filename.startswith(PACKAGE_FOLDER):
            level, frame = level + 1, frame.f_back
        warnings.warn(message, UserWarning, stacklevel=level)
