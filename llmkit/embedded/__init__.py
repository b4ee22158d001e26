"""A small language model in a child process of our own: real answers without a server, a key or a network."""

from llmkit.embedded.server import EmbeddedModelServer, shared_server
from llmkit.embedded.weights import embedded_model, has_model, model_names

__all__ = ["EmbeddedModelServer", "embedded_model", "has_model", "model_names", "shared_server"]
