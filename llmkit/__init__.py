"""llmkit: language models for research, from a notebook cell to an evaluation of thousands of samples.

Names are loaded when they are first used, so that `import llmkit` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from llmkit.errors import (
        LLMAllRoutesFailed,
        LLMAuthenticationError,
        LLMBadRequest,
        LLMBudgetExhausted,
        LLMConfigurationError,
        LLMContentBlocked,
        LLMContextOverflow,
        LLMDatasetError,
        LLMEmptyReply,
        LLMError,
        LLMEvaluationError,
        LLMIdempotencyConflict,
        LLMInProgress,
        LLMInvalidOutput,
        LLMMalformedReply,
        LLMModelNotFound,
        LLMNoRecording,
        LLMNoRoute,
        LLMOutputTruncated,
        LLMPermissionDenied,
        LLMPromptTruncated,
        LLMQuotaExhausted,
        LLMRateLimited,
        LLMReasoningExhausted,
        LLMSolveError,
        LLMStoreError,
        LLMTimeout,
        LLMUnavailable,
        LLMUnsupported,
        LLMUnusableAnswer,
    )
    from llmkit.notebook.conversation import Conversation
    from llmkit.notebook.options import ChatOptions, ExtractOptions, MapOptions
    from llmkit.notebook.stream import AsyncChatStream, AsyncValueStream, ChatStream, ValueStream
    from llmkit.ports import StreamPiece
    from llmkit.providers.model_facts import ModelFacts
    from llmkit.service import (
        LLMService,
    )
    from llmkit.session import (
        Session,
    )
    from llmkit.settings import (
        LLMSettings,
        load_settings,
    )
    from llmkit.types import (
        Attachment,
        Attempt,
        LLMConstraints,
        LLMProfile,
        LLMProvider,
        LLMRequest,
        LLMResponse,
        Logprobs,
        Message,
        NamedToolChoice,
        RequestContext,
        ResponseFormat,
        Route,
        RoutePlan,
        TokenUsage,
        ToolCall,
        ToolDefinition,
    )

__version__ = "0.1.0"

__all__ = [
    "AsyncChatStream",
    "AsyncValueStream",
    "Attachment",
    "Attempt",
    "ChatOptions",
    "ChatStream",
    "Conversation",
    "ExtractOptions",
    "LLMAllRoutesFailed",
    "LLMAuthenticationError",
    "LLMBadRequest",
    "LLMBudgetExhausted",
    "LLMConfigurationError",
    "LLMConstraints",
    "LLMContentBlocked",
    "LLMContextOverflow",
    "LLMDatasetError",
    "LLMEmptyReply",
    "LLMError",
    "LLMEvaluationError",
    "LLMIdempotencyConflict",
    "LLMInProgress",
    "LLMInvalidOutput",
    "LLMMalformedReply",
    "LLMModelNotFound",
    "LLMNoRecording",
    "LLMNoRoute",
    "LLMOutputTruncated",
    "LLMPermissionDenied",
    "LLMProfile",
    "LLMPromptTruncated",
    "LLMProvider",
    "LLMQuotaExhausted",
    "LLMRateLimited",
    "LLMReasoningExhausted",
    "LLMRequest",
    "LLMResponse",
    "LLMService",
    "LLMSettings",
    "LLMSolveError",
    "LLMStoreError",
    "LLMTimeout",
    "LLMUnavailable",
    "LLMUnsupported",
    "LLMUnusableAnswer",
    "Logprobs",
    "MapOptions",
    "Message",
    "ModelFacts",
    "NamedToolChoice",
    "RequestContext",
    "ResponseFormat",
    "Route",
    "RoutePlan",
    "Session",
    "StreamPiece",
    "TokenUsage",
    "ToolCall",
    "ToolDefinition",
    "ValueStream",
    "load_settings",
]

_MODULES = {
    "llmkit.errors": (
        "LLMAllRoutesFailed",
        "LLMAuthenticationError",
        "LLMBadRequest",
        "LLMBudgetExhausted",
        "LLMConfigurationError",
        "LLMContentBlocked",
        "LLMContextOverflow",
        "LLMDatasetError",
        "LLMEmptyReply",
        "LLMError",
        "LLMEvaluationError",
        "LLMIdempotencyConflict",
        "LLMInProgress",
        "LLMInvalidOutput",
        "LLMMalformedReply",
        "LLMModelNotFound",
        "LLMNoRecording",
        "LLMNoRoute",
        "LLMOutputTruncated",
        "LLMPermissionDenied",
        "LLMPromptTruncated",
        "LLMQuotaExhausted",
        "LLMRateLimited",
        "LLMReasoningExhausted",
        "LLMSolveError",
        "LLMStoreError",
        "LLMTimeout",
        "LLMUnavailable",
        "LLMUnsupported",
        "LLMUnusableAnswer",
    ),
    "llmkit.notebook.conversation": ("Conversation",),
    "llmkit.notebook.options": (
        "ChatOptions",
        "ExtractOptions",
        "MapOptions",
    ),
    "llmkit.notebook.stream": (
        "AsyncChatStream",
        "AsyncValueStream",
        "ChatStream",
        "ValueStream",
    ),
    "llmkit.ports": ("StreamPiece",),
    "llmkit.providers.model_facts": ("ModelFacts",),
    "llmkit.service": ("LLMService",),
    "llmkit.session": ("Session",),
    "llmkit.settings": (
        "LLMSettings",
        "load_settings",
    ),
    "llmkit.types": (
        "Attachment",
        "Attempt",
        "LLMConstraints",
        "LLMProfile",
        "LLMProvider",
        "LLMRequest",
        "LLMResponse",
        "Logprobs",
        "Message",
        "NamedToolChoice",
        "RequestContext",
        "ResponseFormat",
        "Route",
        "RoutePlan",
        "TokenUsage",
        "ToolCall",
        "ToolDefinition",
    ),
}


def load_ipython_extension(shell: "InteractiveShell") -> None:
    """Load the `%%llm` magic; IPython calls this for `%load_ext llmkit`."""
    from llmkit.notebook import ipython_magic

    ipython_magic.load_ipython_extension(shell)


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'llmkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
