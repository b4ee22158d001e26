"""Stand-ins for Ollama, Gemini, OpenAI and Anthropic over real HTTP, for tests and notebooks without a model or a key.

    from llmkit.testing import Fault, OllamaServer, Reply

    with OllamaServer(["first", Fault.status(503), Reply("third", output_tokens=17)]) as server:
        ...                     # point a client at server.url
        server.usage            # what was billed, to the token
        server.calls            # what was sent, to the byte

Tokens are whitespace-separated words, so counts can be worked out by hand. Input: the words of all messages, 1 for
any image, tool call or tool result, at least 1 in all. Output: the words of the text and of the thinking, 1 for each
tool call, at least 1. A `Reply` can give any count itself. Importing this package is cheap; aiohttp is loaded when a
server starts.
"""

from llmkit.testing.anthropic import AnthropicModel, AnthropicServer
from llmkit.testing.gemini import GeminiModel, GeminiServer
from llmkit.testing.ollama import OllamaModel, OllamaServer
from llmkit.testing.openai import OpenAIDialect, OpenAIModel, OpenAIServer, OutputLimit
from llmkit.testing.replies import DEFAULT_TEXT, Fault, FaultKind, Reply, RetryAfterForm, ToolCall
from llmkit.testing.reply_script import Replies, Scripted
from llmkit.testing.request_log import Outcome, RecordedRequest, Usage
from llmkit.testing.schema_instance import minimal_instance
from llmkit.testing.server import StandInServer, get_refused_url
from llmkit.testing.server_load import Load
from llmkit.testing.tokens import count_tokens

__all__ = [  # noqa: RUF022 - sorted as plain strings, which puts constants among the classes
    "AnthropicModel",
    "AnthropicServer",
    "DEFAULT_TEXT",
    "Fault",
    "FaultKind",
    "GeminiModel",
    "GeminiServer",
    "Load",
    "OllamaModel",
    "OllamaServer",
    "OpenAIDialect",
    "OpenAIModel",
    "OpenAIServer",
    "Outcome",
    "OutputLimit",
    "RecordedRequest",
    "Replies",
    "Reply",
    "RetryAfterForm",
    "Scripted",
    "StandInServer",
    "ToolCall",
    "Usage",
    "count_tokens",
    "get_refused_url",
    "minimal_instance",
]
