"""The composition root: the one place that names concrete adapters and joins them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

from llmkit.cache import DiskContentCache
from llmkit.cassette import Cassette, CassetteClient, always_set_up, replaying
from llmkit.embedded import embedded_model, model_names, shared_server
from llmkit.facts import Fact, FactBook, ModelFacts
from llmkit.inquiry import OllamaInquiry, ProbeFile, recall_probes
from llmkit.persistence.eval_store import SqlEvalStore
from llmkit.persistence.journal import Journal, JournalLLMRunRepo
from llmkit.persistence.migrate import upgrade
from llmkit.ports import AttemptLog, ClientReply, ModelClient, ModelServer
from llmkit.probe import Prober
from llmkit.providers import PROVIDERS
from llmkit.providers.informed import informed
from llmkit.router import LLMRouter
from llmkit.service import LLMService
from llmkit.settings import LLMSettings
from llmkit.types import LLMProvider, LLMRequest, Route

__all__ = ["Runtime", "open_runtime", "warm_up"]


@dataclass(frozen=True, slots=True)
class Runtime:
    """Everything that a session needs, joined and open."""

    settings: LLMSettings
    service: LLMService
    prober: Prober
    client: ModelClient
    servers: dict[LLMProvider, ModelServer]
    journal: Journal | None
    eval_store: SqlEvalStore | None
    cache: DiskContentCache | None
    cassette: Cassette | None = None
    scratch: Path | None = None

    async def close(self) -> None:
        """Finish what is written, then release everything. Idempotent."""
        await self.client.close()
        for server in self.servers.values():
            await server.close()
        if self.journal is not None:
            self.journal.close()
        if self.cache is not None:
            self.cache.close()
        if self.scratch is not None:
            rmtree(self.scratch, ignore_errors=True)


def open_runtime(settings: LLMSettings, replay: Path | None = None) -> Runtime:
    """Bring the database to head and join the parts. Sends nothing and imports no model library.

    Args:
        settings: Of every part.
        replay: A cassette that answers instead of providers; runs are then kept in a database of their own, which is
            gone afterwards, unless the settings name one.

    Raises:
        LLMBadRequest: The cassette cannot be read.
        LLMStoreError: The database or the cache cannot be used.
        LLMConfigurationError: A package is missing.
    """
    cassette = None if replay is None else Cassette.read(replay)
    scratch = None
    if cassette is not None:
        scratch = None if "database_url" in settings.model_fields_set else Path(mkdtemp(prefix="llmkit-replay-"))
        settings = replaying(settings, scratch)
    cache = _open_cache(settings)
    journal = _open_journal(settings)
    servers: dict[LLMProvider, ModelServer] = {LLMProvider.LOCAL: shared_server(settings)}
    facts = _embedded_facts()
    client = _FirstUseClient(settings, servers, facts)
    runs = JournalLLMRunRepo(journal) if journal is not None else None
    answering: ModelClient = client if cassette is None else CassetteClient(cassette, settings)
    providers = PROVIDERS if cassette is None else always_set_up(PROVIDERS)
    router = LLMRouter(settings, answering, providers, facts=facts)
    asking = OllamaInquiry(settings, facts) if cassette is None else None
    service = LLMService(router=router, settings=settings, runs=runs, cache=cache, inquiry=asking)
    return Runtime(
        settings=settings,
        service=service,
        prober=_prober(settings, service, facts),
        client=client,
        servers=servers,
        journal=journal,
        eval_store=SqlEvalStore(journal, stores_payloads=settings.store_payloads) if journal is not None else None,
        cache=cache,
        cassette=cassette,
        scratch=scratch,
    )


def warm_up(settings: LLMSettings) -> None:
    """Load what a first call would have to wait for, in the calling thread. Takes 3 to 6 s, once per process."""
    from llmkit.client_litellm import LiteLLMClient

    LiteLLMClient(settings).warm_up_here()


class _FirstUseClient:
    """The client of all providers, imported and made with the first call: a stored answer needs none."""

    def __init__(self, settings: LLMSettings, servers: Mapping[LLMProvider, ModelServer], facts: FactBook) -> None:
        self._parts = (settings, servers, facts)
        self._made: ModelClient | None = None

    async def call(self, route: Route, request: LLMRequest, log: AttemptLog) -> ClientReply:
        """See `ModelClient`."""
        if self._made is None:
            from llmkit.client_litellm import LiteLLMClient

            settings, servers, facts = self._parts
            self._made = LiteLLMClient(settings, servers, providers=informed(PROVIDERS, facts))
        return await self._made.call(route, request, log)

    async def close(self) -> None:
        """See `ModelClient`."""
        if self._made is not None:
            await self._made.close()


def _open_journal(settings: LLMSettings) -> Journal | None:
    if not settings.persist_runs:
        return None
    upgrade(settings.database_url)
    return Journal(settings.database_url)


def _open_cache(settings: LLMSettings) -> DiskContentCache | None:
    if not settings.cache_enabled or not settings.store_payloads:
        return None
    return DiskContentCache(
        settings.cache_dir,
        ttl_s=settings.cache_ttl_s,
        size_limit_bytes=settings.cache_size_limit_mb * 1024 * 1024,
    )


def _embedded_facts() -> FactBook:
    """A book that knows the embedded models by the hash of their weights."""
    facts = FactBook()
    for name in model_names():
        digest = Fact(embedded_model(name).sha256, "declared")
        facts.report(Route(provider=LLMProvider.LOCAL, model=name), ModelFacts(digest=digest))
    return facts


def _prober(settings: LLMSettings, service: LLMService, facts: FactBook) -> Prober:
    addresses = {name: spec.address(settings) or "" for name, spec in PROVIDERS.items()}
    file = ProbeFile(settings.cache_dir) if settings.cache_enabled else None
    if file is not None:
        recall_probes(file, facts, addresses)
    return Prober(service, facts, addresses, file)
