"""An agent of two steps, which a test runs in a process of its own and kills there, and then asks again itself."""

from __future__ import annotations

import asyncio
import sys

from pydantic_ai import Agent

from llmkit.bootstrap import open_runtime
from llmkit.pydanticai import PydanticAiLiteLLMModel
from llmkit.settings import load_settings
from llmkit.types import RequestContext, Route


async def weather(url: str, database: str) -> str:
    """Run an agent whose calls are stored in the database, and return its output."""
    settings = load_settings(ollama_api_base=url, database_url=database, cache_enabled=False, max_retries=0)
    runtime = open_runtime(settings)
    model = PydanticAiLiteLLMModel(
        runtime.service,
        context=RequestContext(workspace_id="w", pipeline_run_id="p"),
        route=Route.parse("ollama/llama3.2"),
        idempotency_key="agent",
    )
    agent = Agent(model)

    @agent.tool_plain
    def look_up(city: str) -> str:
        return "sunny"

    found = await agent.run("Weather?")
    await runtime.close()
    return found.output


if __name__ == "__main__":
    asyncio.run(weather(*sys.argv[1:]))
