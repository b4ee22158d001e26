"""Pydantic AI over `LLMService`: agents and typed extraction whose every model request is one `llm_runs` row."""

from llmkit.pydanticai.extraction import Extraction, Outcome, OutputMode, extract
from llmkit.pydanticai.extraction_prompt import extraction_prompt
from llmkit.pydanticai.model import PydanticAiLiteLLMModel
from llmkit.pydanticai.output_reader import Reader
from llmkit.pydanticai.schema import CanonicalSchema, SchemaError, canonical

__all__ = [
    "CanonicalSchema",
    "Extraction",
    "Outcome",
    "OutputMode",
    "PydanticAiLiteLLMModel",
    "Reader",
    "SchemaError",
    "canonical",
    "extract",
    "extraction_prompt",
]
