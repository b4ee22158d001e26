"""Stand-in providers with a whole service before each, over real LiteLLM and real HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from llmkit.client_litellm import LiteLLMClient
from llmkit.pydanticai import Extraction, PydanticAiLiteLLMModel, extract
from llmkit.router import LLMRouter
from llmkit.service import LLMService
from llmkit.settings import load_settings
from llmkit.testing import GeminiServer, OllamaModel, OllamaServer
from llmkit.testing.in_memory import InMemoryLLMRunRepo
from llmkit.testing.scripted_client import ScriptedClient
from llmkit.types import RequestContext, Route

CONTEXT = RequestContext(workspace_id="w", pipeline_run_id="p")


@dataclass
class Wire:
    """One provider's stand-in with a whole service before it."""

    server: OllamaServer | GeminiServer
    service: LLMService
    runs: InMemoryLLMRunRepo
    route: Route

    async def extract(self, output_type: Any, text: str, **options: Any) -> Extraction[Any]:
        return await extract(self.service, output_type, text, context=CONTEXT, route=self.route, **options)

    def model(self, **options: Any) -> PydanticAiLiteLLMModel:
        return PydanticAiLiteLLMModel(self.service, context=CONTEXT, route=self.route, **options)


@asynccontextmanager
async def opened_wire(provider: str) -> AsyncIterator[Wire]:
    seeing = OllamaModel("llama3.2", capabilities=("completion", "tools", "vision"))
    server = OllamaServer(models=[seeing]) if provider == "ollama" else GeminiServer(api_key="key")
    with server:
        settings = load_settings(
            ollama_api_base=server.url,
            gemini_api_base=f"{server.url}/v1beta",
            gemini_api_key="key",
            max_retries=0,
            cache_enabled=False,
        )
        client = LiteLLMClient(settings)
        runs = InMemoryLLMRunRepo()
        service = LLMService(router=LLMRouter(settings, client), settings=settings, runs=runs)
        model = "llama3.2" if provider == "ollama" else "gemini-2.5-flash"
        yield Wire(server, service, runs, Route.parse(f"{provider}/{model}"))
        await client.close()


def scripted_service(answers: Any, **router: Any) -> tuple[LLMService, ScriptedClient, InMemoryLLMRunRepo]:
    """A service whose client answers from a script; `router` goes to `LLMRouter`."""
    settings = load_settings(gemini_api_key="key", cache_enabled=False)
    client, runs = ScriptedClient(answers), InMemoryLLMRunRepo()
    return LLMService(router=LLMRouter(settings, client, **router), settings=settings, runs=runs), client, runs
