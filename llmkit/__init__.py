"""llmkit: language models for research, from a notebook cell to an evaluation of thousands of samples.

Names are loaded when they are first used, so that `import llmkit` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from llmkit.errors import *  # noqa: F403
    from llmkit.service import *  # noqa: F403
    from llmkit.session import *  # noqa: F403
    from llmkit.settings import *  # noqa: F403
    from llmkit.types import *  # noqa: F403

__version__ = "0.1.0"

__all__ = [  # noqa: F405
    "Attachment",
    "Attempt",
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
    "LLMStoreError",
    "LLMTimeout",
    "LLMUnavailable",
    "LLMUnsupported",
    "LLMUnusableAnswer",
    "Message",
    "NamedToolChoice",
    "RequestContext",
    "ResponseFormat",
    "Route",
    "RoutePlan",
    "Session",
    "TokenUsage",
    "ToolCall",
    "ToolDefinition",
    "load_settings",
]

# From light to heavy: a name is looked for where finding it costs least.
_ROOMS = ("types", "errors", "settings", "session", "service")


def load_ipython_extension(shell: "InteractiveShell") -> None:
    """`%load_ext llmkit`: bring the `%%llm` magic."""
    from llmkit.notebook import ipython_magic as magic

    magic.load_ipython_extension(shell)


def __getattr__(name: str) -> Any:
    if name in __all__:
        for room in _ROOMS:
            module = import_module(f"llmkit.{room}")
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module 'llmkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
