"""The composition root: the one place that names concrete adapters and joins them."""

from __future__ import annotations

from dataclasses import dataclass

from llmkit.cache import DiskContentCache
from llmkit.client_litellm import LiteLLMClient
from llmkit.embedded import shared_server
from llmkit.persistence.eval_store import SqlEvalStore
from llmkit.persistence.journal import Journal, JournalLLMRunRepo
from llmkit.persistence.migrate import upgrade
from llmkit.ports import ModelServer
from llmkit.router import LLMRouter
from llmkit.service import LLMService
from llmkit.settings import LLMSettings
from llmkit.types import LLMProvider

__all__ = ["Runtime", "open_runtime", "warm_up"]


@dataclass(frozen=True, slots=True)
class Runtime:
    """Everything that a session needs, joined and open."""

    settings: LLMSettings
    service: LLMService
    client: LiteLLMClient
    servers: dict[LLMProvider, ModelServer]
    journal: Journal | None
    eval_store: SqlEvalStore | None
    cache: DiskContentCache | None

    async def close(self) -> None:
        """Finish what is written, then release everything. Idempotent."""
        await self.client.close()
        for server in self.servers.values():
            await server.close()
        if self.journal is not None:
            self.journal.close()
        if self.cache is not None:
            self.cache.close()


def open_runtime(settings: LLMSettings) -> Runtime:
    """Bring the database to head and join the parts. Sends nothing and imports no model library.

    Raises:
        LLMStoreError: The database or the cache cannot be used.
        LLMConfigurationError: A package is missing.
    """
    cache = _open_cache(settings)
    journal = _open_journal(settings)
    servers: dict[LLMProvider, ModelServer] = {LLMProvider.LOCAL: shared_server(settings)}
    client = LiteLLMClient(settings, servers)
    runs = JournalLLMRunRepo(journal) if journal is not None else None
    service = LLMService(router=LLMRouter(settings, client), settings=settings, runs=runs, cache=cache)
    return Runtime(
        settings=settings,
        service=service,
        client=client,
        servers=servers,
        journal=journal,
        eval_store=SqlEvalStore(journal, stores_payloads=settings.store_payloads) if journal is not None else None,
        cache=cache,
    )


def warm_up(settings: LLMSettings) -> None:
    """Load what a first call would have to wait for, in the calling thread. Takes 3 to 6 s, once per process."""
    LiteLLMClient(settings).warm_up_here()


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
