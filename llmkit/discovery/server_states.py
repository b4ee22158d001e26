"""Look-ups of the servers that can report their state, by provider."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from types import MappingProxyType
from typing import Any

from llmkit.discovery.ollama import fetch_server_state
from llmkit.providers.checks import ServerState
from llmkit.settings import LLMSettings
from llmkit.types import LLMProvider

__all__ = ["LOOK_UPS"]

LOOK_UPS: Mapping[LLMProvider, Callable[[LLMSettings], Coroutine[Any, Any, ServerState | None]]] = MappingProxyType(
    {LLMProvider.OLLAMA: lambda settings: fetch_server_state(str(settings.ollama_api_base))}
)
"""None as a result means that nothing answered within 2 s. Other providers are checked without a request."""
