"""Pydantic AI over `LLMService`: agents and typed extraction whose every model request is one `llm_runs` row."""

from llmkit.pydanticai.extraction import Extraction, OutputMode, extract
from llmkit.pydanticai.model import PydanticAiLiteLLMModel

__all__ = ["Extraction", "OutputMode", "PydanticAiLiteLLMModel", "extract"]
