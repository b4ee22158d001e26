"""Warnings about the model that answered: another one than the first choice, or a base model without examples."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable
from pathlib import Path

from llmkit.providers import BUILT_IN
from llmkit.types import LLMResponse, Route

__all__ = ["FallbackWarner"]

PACKAGE_FOLDER = str(Path(__file__).parents[1])


class FallbackWarner:
    """Detects fallbacks in the loop's thread, and warns in the thread of the caller, once until `reset`.

    Likewise of answers of a base model that was shown no examples.
    """

    def __init__(self) -> None:
        self._has_warned = False
        self._has_warned_of_examples = False
        self._messages: list[str] = []
        self._first_choices: set[Route] = set()

    def reset(self) -> None:
        """Allow one more warning of each."""
        self._has_warned = self._has_warned_of_examples = False

    def check_examples(self, responses: Iterable[LLMResponse]) -> None:
        """Remember a warning if a base model gave one of these answers, whose prompt had no examples."""
        for response in responses:
            spec = BUILT_IN.get(response.route.provider)
            if spec is not None and spec.is_last_resort and not self._has_warned_of_examples:
                self._has_warned_of_examples = True
                self._messages.append(
                    f"{response.route} is a small base model, which follows examples and no instructions: pass "
                    "examples=[(text, answer), ...], or name another route"
                )

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
                self._messages.append(
                    f"{response.route} answered, because the first choice, {preferred}, did not. Further fallbacks are "
                    "not reported; the column `route` shows them. To prevent them, name a route (route=... or --route)"
                )

    def warn(self) -> None:
        """Issue the remembered warnings, if any, for the caller's line outside llmkit."""
        messages, self._messages = self._messages, []
        if not messages:
            return
        level, frame = 1, inspect.currentframe()
        while frame is not None and frame.f_code.co_filename.startswith(PACKAGE_FOLDER):
            level, frame = level + 1, frame.f_back
        for message in messages:
            warnings.warn(message, UserWarning, stacklevel=level)
