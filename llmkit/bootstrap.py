"""The composition root: the one place that names concrete adapters and joins them.

What an answer from the store does not need is imported where it is first wanted: most of such an answer is imports.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from logging import getLogger
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from llmkit.calls.liveness import current_owner
from llmkit.discovery.probe_cache import ProbeFile, recall_probes
from llmkit.discovery.refresh import OllamaDiscovery
from llmkit.errors import LLMStoreError
from llmkit.local_model.models import find_local_model, list_model_names
from llmkit.persistence.content_cache import DiskContentCache
from llmkit.persistence.journal import Journal, JournalLLMRunRepo
from llmkit.persistence.migrate import upgrade
from llmkit.ports import (
    AnswerSink,
    AttemptLog,
    BeforeSend,
    ClientReply,
    ModelClient,
    ModelDiscovery,
    ModelServer,
    NotSent,
    allow_sending,
)
from llmkit.providers import ProviderSpec, load_endpoints
from llmkit.providers.model_facts import Fact, FactBook, ModelFacts
from llmkit.providers.with_facts import add_model_facts
from llmkit.router import LLMRouter
from llmkit.service import LLMService
from llmkit.settings import LLMSettings
from llmkit.types import LLMProvider, LLMRequest, Route

if TYPE_CHECKING:
    from llmkit.discovery.probe import Prober
    from llmkit.persistence.eval_store import SqlEvalStore
    from llmkit.replay.cassette import Cassette

__all__ = ["Runtime", "list_routes", "open_runtime", "preload"]


@dataclass(frozen=True)
class Runtime:
    """Everything that a session needs, joined and open."""

    settings: LLMSettings
    service: LLMService
    facts: FactBook
    client: ModelClient
    journal: Journal | None
    cache: DiskContentCache | None
    cassette: Cassette | None = None
    scratch: Path | None = None

    @cached_property
    def prober(self) -> Prober:
        """Tries models out."""
        from llmkit.discovery.probe import Prober

        return Prober(self.service, self.facts, _addresses(self.settings), _probe_file(self.settings))

    @cached_property
    def eval_store(self) -> SqlEvalStore | None:
        """Where evaluations are kept; made, with all that it loads, when it is first wanted."""
        if self.journal is None:
            return None
        from llmkit.persistence.eval_store import SqlEvalStore
        from llmkit.persistence.leases import JournalLeases

        leases = JournalLeases(self.journal, current_owner)
        return SqlEvalStore(self.journal, stores_payloads=self.settings.store_payloads, leases=leases)

    async def close(self) -> None:
        """Finish all writes, then release everything, also what comes after a failure. Idempotent.

        Raises:
            LLMStoreError: Some calls could not be recorded.
        """
        with ExitStack() as last_first:
            if self.scratch is not None:
                last_first.callback(rmtree, self.scratch, ignore_errors=True)
            if self.cache is not None:
                last_first.callback(self.cache.close)
            if self.journal is not None:
                last_first.callback(self.journal.close)
            await self.client.close()
            try:
                await self.service.close()
            except LLMStoreError as error:
                # Each caller has had this error before, with its answer.
                getLogger("llmkit").warning("%s", error)


def open_runtime(settings: LLMSettings, replay: Path | None = None) -> Runtime:
    """Bring the database to head and join the parts. Sends nothing and imports no model library.

    Args:
        settings: Of every part.
        replay: A cassette that answers instead of providers; runs are then kept in a database of their own, which is
            gone afterwards, unless the settings name one.

    Raises:
        LLMBadRequest: The cassette cannot be read.
        LLMStoreError: The database cannot be used.
        LLMConfigurationError: A package is missing.
    """
    if replay is not None:
        return _replaying_runtime(settings, replay)
    endpoints = load_endpoints(settings)
    facts = _load_facts(settings)
    journal = _open_journal(settings)
    client = _FirstUseClient(settings, facts, endpoints, journal)
    router = LLMRouter(settings, client, endpoints, facts=facts)
    discovery = OllamaDiscovery(settings, facts, endpoints=endpoints)
    return _assemble(settings, router, client, facts, discovery=discovery, journal=journal)


def _replaying_runtime(settings: LLMSettings, replay: Path) -> Runtime:
    from llmkit.replay.cassette import Cassette, CassetteClient, always_set_up, replaying

    cassette = Cassette.read(replay)
    scratch = None if "database_url" in settings.model_fields_set else Path(mkdtemp(prefix="llmkit-replay-"))
    settings = replaying(settings, scratch)
    facts = _load_facts(settings)
    client = CassetteClient(cassette, settings)
    endpoints = always_set_up(load_endpoints(settings), cassette.routes)
    router = LLMRouter(settings, client, endpoints, facts=facts)
    return replace(
        _assemble(settings, router, client, facts, discovery=None, journal=_open_journal(settings)),
        cassette=cassette,
        scratch=scratch,
    )


def _assemble(
    settings: LLMSettings,
    router: LLMRouter,
    client: ModelClient,
    facts: FactBook,
    *,
    discovery: ModelDiscovery | None,
    journal: Journal | None,
) -> Runtime:
    cache = _open_cache(settings)
    runs = JournalLLMRunRepo(journal) if journal is not None else None
    service = LLMService(router=router, settings=settings, runs=runs, cache=cache, discovery=discovery)
    return Runtime(settings=settings, service=service, facts=facts, client=client, journal=journal, cache=cache)


async def list_routes(settings: LLMSettings) -> tuple[str, ...]:
    """Return the routes that could be called: configured models, and those of Ollama servers. Takes up to 2 s."""
    from llmkit.discovery.ollama import fetch_server_state

    endpoints = load_endpoints(settings)
    servers = {name: spec.server_address(settings) for name, spec in endpoints.items() if spec.server_address}
    states = await asyncio.gather(*map(fetch_server_state, servers.values()))
    pulled = [
        f"{name}/{model.name.removesuffix(':latest')}"
        for name, state in zip(servers, states, strict=True)
        for model in (state.models if state is not None else ())
    ]
    routes = [f"{name}/{spec.default_model(settings)}" for name, spec in endpoints.items()]
    return tuple(dict.fromkeys([*pulled, *routes]))


def preload(settings: LLMSettings) -> None:
    """Load what a first call would have to wait for, in the calling thread. Takes 3 to 6 s, once per process."""
    from llmkit.client_litellm import LiteLLMClient

    LiteLLMClient(settings).preload_here()


class _FirstUseClient:
    """The client of all providers and our own model server, imported and made with the first call."""

    def __init__(
        self,
        settings: LLMSettings,
        facts: FactBook,
        endpoints: Mapping[LLMProvider, ProviderSpec],
        journal: Journal | None,
    ) -> None:
        self._journal = journal
        self._settings = settings
        self._facts = facts
        self._endpoints = endpoints
        self._servers: dict[LLMProvider, ModelServer] = {}
        self._made: ModelClient | None = None

    async def call(
        self,
        route: Route,
        request: LLMRequest,
        log: AttemptLog,
        before_send: BeforeSend = allow_sending,
        *,
        sink: AnswerSink | None = None,
    ) -> ClientReply | NotSent:
        """See `ModelClient`."""
        if self._made is None:
            from llmkit.client_litellm import LiteLLMClient
            from llmkit.local_model.server import share_server
            from llmkit.persistence.leases import JournalLeases

            self._servers[LLMProvider.LOCAL] = share_server(self._settings)
            providers = add_model_facts(self._endpoints, self._facts)
            leases = None if self._journal is None else JournalLeases(self._journal, current_owner)
            self._made = LiteLLMClient(self._settings, self._servers, providers=providers, leases=leases)
        return await self._made.call(route, request, log, before_send, sink=sink)

    async def close(self) -> None:
        """See `ModelClient`."""
        if self._made is not None:
            await self._made.close()
        for server in self._servers.values():
            await server.close()


def _open_journal(settings: LLMSettings) -> Journal | None:
    if not settings.persist_runs:
        return None
    upgrade(settings.database_url)
    return Journal(settings.database_url)


def _open_cache(settings: LLMSettings) -> DiskContentCache | None:
    if not settings.cache_enabled or not settings.store_payloads:
        return None
    try:
        return DiskContentCache(
            settings.cache_dir,
            ttl_s=settings.cache_ttl_s,
            size_limit_bytes=settings.cache_size_limit_mb * 1024 * 1024,
        )
    except LLMStoreError as error:
        # Cached answers are expendable: neither calls nor reads of the store may fail because of them.
        warnings.warn(f"{error}. Until then no answer comes from the cache.", stacklevel=2)
        return None


def _load_facts(settings: LLMSettings) -> FactBook:
    """Return a book that knows the local models by the hash of their weights, and what earlier trials have shown."""
    facts = FactBook()
    for name in list_model_names():
        digest = Fact(find_local_model(name).sha256, "declared")
        facts.report(Route(provider=LLMProvider.LOCAL, model=name), ModelFacts(digest=digest))
    file = _probe_file(settings)
    if file is not None:
        recall_probes(file, facts, _addresses(settings))
    return facts


def _probe_file(settings: LLMSettings) -> ProbeFile | None:
    return ProbeFile(settings.cache_dir) if settings.cache_enabled else None


def _addresses(settings: LLMSettings) -> dict[LLMProvider, str]:
    return {name: spec.address(settings) or "" for name, spec in load_endpoints(settings).items()}
