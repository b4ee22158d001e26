"""A task: samples, a prompt, the type of the answer, and how answers are scored."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUndefinedAnnotation, PydanticUserError

from llmkit.canonical_json import sha256_of
from llmkit.errors import LLMEvaluationError, describe_validation
from llmkit.evals.dataset.dataset import Dataset, DatasetSource, Sample
from llmkit.evals.prompt import Prompt, Template
from llmkit.evals.scorers import Scorer, ScorerLike, as_scorer, describe_scorer
from llmkit.types import LLMRequest, Message

__all__ = ["PARAMETERS", "Task", "compile_prompt", "copy_parameters", "describe_prompt", "relative_to"]

PARAMETERS = ("temperature", "max_output_tokens", "seed", "stop", "thinking", "profile", "timeout_s")
NAME = re.compile(r"[^\s@,:][^\s@,]{0,119}")

# A context variable and not a parameter: the user's file builds its tasks, and two threads may load files at once.
_BASE_DIR: ContextVar[Path | None] = ContextVar("llmkit_task_dir", default=None)


@contextmanager
def relative_to(folder: Path) -> Iterator[None]:
    """Let relative dataset paths of the tasks built in this block start at `folder`."""
    token = _BASE_DIR.set(folder)
    try:
        yield
    finally:
        _BASE_DIR.reset(token)


@dataclass(frozen=True, eq=False)
class Task:
    r"""A prompt over a dataset, the type of its output, and the scorers that judge it.

    Checked when it is built; the dataset is read when it is first needed.

    Attributes:
        name: Without white space, `@` and `,`; at most 120 characters.
        dataset: A `.jsonl`, `.csv` or `.parquet` file beside the task file (in a notebook: in the working directory),
            a list of `Sample`, a DataFrame or a `Dataset`.
        prompt: A template such as `"Text: {input}\nSentiment:"`, or a function from a sample to text or messages.
        output_type: The Pydantic model that an answer must fit.
        scorers: Built-in ones, or functions `(output, sample)` that return a number, a bool or a `Score`.
        system: A system message that every prompt begins with.
        prompts: Further prompts by name, to compare: the route `ollama/llama3.2@short` uses the prompt `short`.
        parameters: Generation parameters: temperature, max_output_tokens, seed, stop, thinking, profile,
            timeout_s.
        description: One line for people.

    Raises:
        LLMEvaluationError: A part cannot be used; the message names it.

    Example:
        >>> from llmkit.evals import Sample, Task, field_match
        >>> from pydantic import BaseModel
        >>> class Sentiment(BaseModel):
        ...     label: str
        >>> Task(
        ...     name="sentiment",
        ...     dataset=[Sample("I like it.", "positive")],
        ...     prompt="Text: {input} Sentiment:",
        ...     output_type=Sentiment,
        ...     scorers=[field_match("label")],
        ... )
        Task('sentiment', output_type=Sentiment, scorers=[field_match])
    """

    name: str
    dataset: DatasetSource
    prompt: Prompt
    output_type: type[BaseModel]
    scorers: Sequence[ScorerLike] = ()
    _: KW_ONLY
    system: str | None = None
    prompts: Mapping[str, Prompt] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""
    base_dir: Path | None = field(default_factory=_BASE_DIR.get, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in (self.name, *self.prompts):
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise LLMEvaluationError(f"The name {name!r} is empty, too long, or has white space, '@' or ','.")
        _require_schema(self.output_type)
        for prompt in (self.prompt, *self.prompts.values()):
            compile_prompt(prompt)
        copy_parameters(self.parameters)
        if not isinstance(self.scorers, Sequence) or isinstance(self.scorers, str):
            raise LLMEvaluationError(f"scorers is a list, scorers=[...]; got {type(self.scorers).__name__}.")
        _require_scorers(self.scorer_objects, self.output_type)

    @property
    def scorer_objects(self) -> tuple[Scorer, ...]:
        """The scorers, functions wrapped."""
        return tuple(as_scorer(scorer) for scorer in self.scorers)

    def load(self, limit: int | None = None) -> Dataset:
        """Read the dataset, or its first samples.

        Raises:
            LLMDatasetError: It is missing or malformed; the message names file, line and field.

        Example:
            >>> [sample.target for sample in task.load()]
            ['positive']
        """
        return Dataset.load(self.dataset, base_dir=self.base_dir, limit=limit)

    def definition(self) -> dict[str, Any]:
        """Return everything that answers depend on, as JSON: prompts, output schema and parameters.

        Example:
            >>> list(task.definition())
            ['system', 'prompt', 'output schema', 'parameters']
        """
        return {
            "system": self.system,
            "prompt": describe_prompt(self.prompt),
            "output schema": self.output_type.model_json_schema(),
            "parameters": dict(self.parameters),
        }

    @property
    def task_sha256(self) -> str:
        """Hash of the definition. Scorers are not part of it: stored answers can be scored again."""
        return sha256_of(self.definition())

    @property
    def scorers_sha256(self) -> str:
        """Hash of the scorers' names, options and source text."""
        return sha256_of([describe_scorer(scorer) for scorer in self.scorer_objects])

    def __repr__(self) -> str:
        scorers = ", ".join(scorer.name for scorer in self.scorer_objects)
        return f"Task({self.name!r}, output_type={self.output_type.__name__}, scorers=[{scorers}])"


def _require_schema(output_type: Any) -> None:
    if not isinstance(output_type, type) or not issubclass(output_type, BaseModel):
        raise LLMEvaluationError(f"output_type must be a Pydantic model class; got {output_type!r}.")
    try:
        schema = output_type.model_json_schema()
    except (PydanticInvalidForJsonSchema, PydanticUndefinedAnnotation, PydanticUserError) as error:
        reason = str(error).partition("\n")[0]
        raise LLMEvaluationError(f"{output_type.__name__} cannot be turned into a JSON schema: {reason}") from None
    if schema.get("type", "object") != "object":
        raise LLMEvaluationError(
            f"{output_type.__name__} is not a JSON object; put its content into a field of a model."
        )


def _require_scorers(scorers: Sequence[Scorer], output_type: type[BaseModel]) -> None:
    names = [scorer.name for scorer in scorers]
    for scorer in scorers:
        if names.count(scorer.name) > 1:
            raise LLMEvaluationError(f"Two scorers are called {scorer.name!r}; give one of them name=...")
        check = getattr(scorer, "check", None)
        if check is not None:
            check(output_type)


def compile_prompt(prompt: Prompt) -> Template | Callable[[Sample], str | Sequence[Message]]:
    """Return a template ready to fill, or the function.

    Raises:
        LLMEvaluationError: It is neither, or the template cannot be read.
    """
    if isinstance(prompt, str):
        return Template.parse(prompt)
    if callable(prompt):
        return prompt
    raise LLMEvaluationError(f"A prompt is a template or a function of a sample; got {type(prompt).__name__}.")


def describe_prompt(prompt: Prompt) -> str:
    """Return the template, or the name of the function. An edited function shows in the messages that it renders."""
    return prompt if isinstance(prompt, str) else f"function {getattr(prompt, '__name__', type(prompt).__name__)}"


def copy_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the generation parameters as a new dictionary.

    Raises:
        LLMEvaluationError: A name is unknown or a value is out of range.
    """
    unknown = sorted(set(parameters) - set(PARAMETERS))
    if unknown:
        raise LLMEvaluationError(f"Unknown parameter {', '.join(unknown)}; known: {', '.join(PARAMETERS)}.")
    try:
        # The request is the only place that knows the ranges of the parameters.
        LLMRequest.model_validate({"messages": "check", **parameters})
    except ValidationError as error:
        raise LLMEvaluationError(f"A parameter has a bad value: {'; '.join(describe_validation(error))}") from None
    return dict(parameters)
