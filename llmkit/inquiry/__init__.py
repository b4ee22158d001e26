"""Finding out what single models can do: by asking their server, and from what earlier trials left on disk."""

from llmkit.inquiry.finder import OllamaInquiry
from llmkit.inquiry.ollama import OllamaServerState, PulledModel, look_at_server
from llmkit.inquiry.probe_file import ProbeFile, StoredProbe, recall_probes

__all__ = [
    "OllamaInquiry",
    "OllamaServerState",
    "ProbeFile",
    "PulledModel",
    "StoredProbe",
    "look_at_server",
    "recall_probes",
]
