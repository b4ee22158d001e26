"""Refresh of the facts about Ollama's models, at the price of two small requests a minute for each model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping

from llmkit.batch.task_guard import start_session_task
from llmkit.errors import LLMConfigurationError
from llmkit.providers import PROVIDERS, ProviderSpec
from llmkit.providers.model_facts import FactBook
from llmkit.settings import LLMSettings
from llmkit.types import LLMProvider, Route

__all__ = ["OllamaDiscovery"]

# The wait after a failed lookup, during which earlier facts stay valid.
TRY_AGAIN_AFTER_S = 10.0


class OllamaDiscovery:
    """Implementation of `llmkit.ports.ModelDiscovery` that queries the Ollama servers among the endpoints.

    Usable from any event loop. A failed lookup (no server, an error, no answer within 2 s) changes nothing and is
    repeated after 10 s at the earliest. The facts about a model that the server does not have are forgotten.

    Args:
        settings: Addresses, and `facts_ttl_s`.
        facts: Where facts are stored.
        clock: A monotonic clock, in seconds.
        endpoints: Every endpoint by name; those whose server reports its state are queried.
    """

    def __init__(
        self,
        settings: LLMSettings,
        facts: FactBook,
        clock: Callable[[], float] = time.monotonic,
        endpoints: Mapping[LLMProvider, ProviderSpec] = PROVIDERS,
    ) -> None:
        self._bases = {name: spec.server_address(settings) for name, spec in endpoints.items() if spec.server_address}
        self._fresh_s = settings.facts_ttl_s
        self._facts = facts
        self._clock = clock
        self._due_s: dict[Route, float] = {}
        # The key contains the event loop, because a task can only be awaited in its own.
        self._lookups: dict[tuple[asyncio.AbstractEventLoop, Route], asyncio.Task[None]] = {}

    def is_due(self, route: Route) -> bool:
        """Implement `ModelDiscovery`."""
        return route.provider in self._bases and self._clock() >= self._due_s.get(route, float("-inf"))

    async def discover(self, routes: Iterable[Route]) -> None:
        """Implement `ModelDiscovery`."""
        lookups = [self._share_lookup(route) for route in dict.fromkeys(routes) if self.is_due(route)]
        if lookups:
            # `gather` would cancel the shared lookup for all callers when one of them is cancelled.
            await asyncio.wait(lookups)

    def _share_lookup(self, route: Route) -> asyncio.Task[None]:
        """Return the lookup in progress, or start one."""
        here = (asyncio.get_running_loop(), route)
        task = self._lookups.get(here)
        if task is None:
            task = self._lookups[here] = start_session_task(self._look_up(route))
            task.add_done_callback(lambda _done: self._lookups.pop(here, None))
        return task

    async def _look_up(self, route: Route) -> None:
        from llmkit.discovery.ollama import fetch_model_facts

        try:
            found = await fetch_model_facts(self._bases[route.provider], route.model)
        except LLMConfigurationError:
            found = None  # The call itself fails with this error.
        if found is not None:
            self._facts.report(route, found)
        has_it = found is not None and bool(tuple(found))
        self._due_s[route] = self._clock() + (self._fresh_s if has_it else min(TRY_AGAIN_AFTER_S, self._fresh_s))
