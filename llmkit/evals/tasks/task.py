"""A task: samples, a prompt, the type of the answer, and how answers are scored."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from contextvars import ContextVar
from dataclasses import KW_ONLY, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from llmkit.canonical_json import sha256_of
from llmkit.errors import LLMEvaluationError, describe_validation
from llmkit.evals.answer_type import AnswerType
from llmkit.evals.dataset.columns import Columns, FieldSource
from llmkit.evals.dataset.dataset import Dataset, DatasetSource, KeptItems, Reading, Sample
from llmkit.evals.prompt import Prompt, Template
from llmkit.evals.scorers import (
    DatasetMetric,
    Scorer,
    ScorerLike,
    as_scorer,
    describe_scorer,
    is_dataset_metric,
)
from llmkit.evals.scorers.base import Options
from llmkit.evals.solve.function import (
    Solve,
    check_solve,
    describe_solve,
    name_solve,
    read_return_type,
    solve_content,
)
from llmkit.types import LLMRequest, Message, ResponseFormat

__all__ = [
    "PARAMETERS",
    "Task",
    "compile_prompt",
    "copy_parameters",
    "describe_prompt",
    "relative_to",
    "response_format_of",
]

PARAMETERS = ("temperature", "max_output_tokens", "seed", "stop", "thinking", "logprobs", "profile", "timeout_s")
# Stands for the prompt of a task with a function in the record of a run.
SOLVE = "function solve"
NAME = re.compile(r"[^\s@,:][^\s@,]{0,119}")

# A context variable and not a parameter: the user's file builds its tasks, and two threads may load files at once.
_BASE_DIR: ContextVar[Path | None] = ContextVar("llmkit_task_dir", default=None)
_FILE: ContextVar[Path | None] = ContextVar("llmkit_task_file", default=None)


@contextmanager
def relative_to(folder: Path, file: Path | None = None) -> Iterator[None]:
    """Let relative dataset paths of the tasks built in this block start at `folder`, and note the file they are in."""
    token, file_token = _BASE_DIR.set(folder), _FILE.set(file)
    try:
        yield
    finally:
        _BASE_DIR.reset(token)
        _FILE.reset(file_token)


@dataclass(frozen=True, eq=False)
class Task:
    r"""A prompt or a function over a dataset, the type of its output, and the scorers that judge it.

    Checked when it is built; the dataset is read when it is first needed.

    Attributes:
        name: Without white space, `@` and `,`; at most 120 characters.
        dataset: A file beside the task file (in a notebook: in the working directory), a list of `Sample` or of
            dictionaries, a table, or a `Dataset`; see `Dataset.load`.
        prompt: A template such as `"Text: {input}\nSentiment:"`, or a function from a sample to text or messages.
        output_type: The type of an answer to the prompt: `str` for free text, a Pydantic model, a dataclass, a
            TypedDict, or any other type that Pydantic validates, such as `int`, `list[str]` or `Literal["yes", "no"]`.
        scorers: Built-in ones, or functions `(output, sample)` that return a number, a bool or a `Score`.
        system: A system message that every prompt begins with.
        prompts: Further prompts by name, to compare: the route `ollama/llama3.2@short` uses the prompt `short`.
        parameters: Generation parameters: temperature, max_output_tokens, seed, stop, thinking, logprobs, profile,
            timeout_s.
        description: One line for people.
        input: Column of the dataset that is the input, or several; see `Dataset.load`, also for the next ones.
        target: Column of the right answer.
        id: Column of the ids.
        group: Column of the groups.
        metadata: Columns that are kept as metadata.
        sample_of: A function from a record to a `Sample`, to several, or to None; in place of the columns.
        encoding: Encoding of a text file.
        delimiter: Delimiter of a CSV file.
        records: Path of the records inside a JSON document.
        split: Part of a `DatasetDict`.

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
    prompt: Prompt | None = None
    output_type: Any = None
    scorers: Sequence[ScorerLike | DatasetMetric] = ()
    _: KW_ONLY
    solve: Solve | None = None
    version: str | None = None
    system: str | None = None
    prompts: Mapping[str, Prompt] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""
    input: FieldSource | None = None
    target: FieldSource | None = None
    id: FieldSource | None = None
    group: FieldSource | None = None
    metadata: FieldSource | None = None
    sample_of: Callable[[Any], Any] | None = None
    encoding: str | None = None
    delimiter: str | None = None
    records: str | None = None
    split: str | None = None
    base_dir: Path | None = field(default_factory=_BASE_DIR.get, repr=False, compare=False)
    # The file that defines the task; None for a copy with other values, which is not in the file.
    file: Path | None = field(default_factory=_FILE.get, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in (self.name, *self.prompts):
            if not isinstance(name, str) or not NAME.fullmatch(name) or not name.isprintable():
                raise LLMEvaluationError(
                    f"The name {name!r:.140} is empty, longer than 120, or has white space, '@', ',' or characters "
                    "that cannot be printed."
                )
        self._require_prompt_or_solve()
        answer = self.answer
        if isinstance(self.dataset, Iterator):
            # A task is read more than once, by the run and by reports; an iterator gives its items once.
            object.__setattr__(self, "dataset", KeptItems(self.dataset))
        _ = self.columns
        for prompt in () if self.prompt is None else (self.prompt, *self.prompts.values()):
            compile_prompt(prompt)
        copy_parameters(self.parameters)
        if not isinstance(self.scorers, Sequence) or isinstance(self.scorers, str):
            raise LLMEvaluationError(f"scorers is a list, scorers=[...]; got {type(self.scorers).__name__}.")
        _require_scorers((*self.scorer_objects, *self.dataset_metrics), answer)

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields for a pickle: what was computed from them, such as validators, is computed again."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def _require_prompt_or_solve(self) -> None:
        if self.solve is None:
            missing = [name for name in ("prompt", "output_type") if getattr(self, name) is None]
            if missing:
                what = " and ".join(f"{name}=" for name in missing)
                raise LLMEvaluationError(f"A task has prompt= and output_type=, or solve=; {what} is missing.")
            if self.version is not None:
                raise LLMEvaluationError("version= belongs to solve=; a prompt is recognised by its text.")
            return
        given = [name for name in ("prompt", "output_type", "system", "prompts") if getattr(self, name)]
        if given:
            raise LLMEvaluationError(
                f"A task with solve= takes no {given[0]}=: the function sends its own prompts, and the type that it "
                "declares to return is the output type."
            )
        if self.version is not None and not isinstance(self.version, str):
            raise LLMEvaluationError(f"version must be a string; got {type(self.version).__name__}.")
        check_solve(self.solve)

    @cached_property
    def answer(self) -> AnswerType:
        """The output type, as it is requested, stored and compared."""
        return AnswerType.of(self.output_type if self.solve is None else read_return_type(self.solve))

    @property
    def scorer_objects(self) -> tuple[Scorer, ...]:
        """The scorers of single answers, functions wrapped."""
        own = (cast("ScorerLike", scorer) for scorer in self.scorers if not is_dataset_metric(scorer))
        return tuple(as_scorer(scorer) for scorer in own)

    @property
    def dataset_metrics(self) -> tuple[DatasetMetric, ...]:
        """The scorers of many answers. They are computed for a report, and nothing of them is stored."""
        return tuple(cast("DatasetMetric", scorer) for scorer in self.scorers if is_dataset_metric(scorer))

    def load(self, limit: int | None = None) -> Dataset:
        """Read the dataset, or its first samples.

        Raises:
            LLMDatasetError: It is missing or malformed; the message names file, line and field.

        Example:
            >>> [sample.target for sample in task.load()]
            ['positive']
        """
        if isinstance(self.dataset, Dataset) and self.columns.is_default:
            return self.dataset.limit(limit)
        with closing(Reading(self.dataset, self.base_dir, columns=self.columns)) as reading:
            reading.read(limit)
            return reading.dataset()

    @property
    def columns(self) -> Columns:
        """How the dataset is read."""
        return Columns(**{each.name: getattr(self, each.name) for each in fields(Columns)})

    def definition(self) -> dict[str, Any]:
        """Return everything that answers depend on, as JSON: prompts, output schema and parameters.

        Example:
            >>> list(task.definition())
            ['system', 'prompt', 'output schema', 'parameters']
        """
        if self.solve is not None:
            return {"solve": self._solve_identity, "parameters": dict(self.parameters)}
        return {
            "system": self.system,
            "prompt": describe_prompt(self.prompt),
            "output schema": self.answer.schema,
            "parameters": dict(self.parameters),
        }

    @cached_property
    def _solve_identity(self) -> dict[str, Any]:
        # Once: what the function uses may change while it runs.
        assert self.solve is not None
        return describe_solve(self.solve, self.version)

    @property
    def task_sha256(self) -> str:
        """Hash of the definition. Scorers are not part of it: stored answers can be scored again."""
        return sha256_of(self.definition())

    @property
    def scorers_sha256(self) -> str:
        """Hash of the scorers' names, options and source text."""
        return sha256_of([describe_scorer(scorer) for scorer in self.scorer_objects])

    def __repr__(self) -> str:
        names = [scorer.name for scorer in self.scorer_objects] + [metric.name for metric in self.dataset_metrics]
        scorers = ", ".join(names)
        kind = f"output_type={self.answer.name}" if self.solve is None else f"solve={name_solve(self.solve)}"
        return f"Task({self.name!r}, {kind}, scorers=[{scorers}])"


def _require_scorers(scorers: Sequence[Scorer | DatasetMetric], answer: AnswerType) -> None:
    names = [scorer.name for scorer in scorers]
    for scorer in scorers:
        if names.count(scorer.name) > 1:
            raise LLMEvaluationError(f"Two scorers are called {scorer.name!r}; give one of them name=...")
        check = getattr(scorer, "check", None)
        if check is not None and not (isinstance(scorer, Options) and answer.has_open_fields):
            check(answer.view if isinstance(scorer, Options) else answer.declared)


def response_format_of(task: Task) -> ResponseFormat | None:
    """Return what a request for an answer asks for besides its messages; None for free text."""
    schema = task.answer.wire_schema
    return None if schema is None else ResponseFormat(json_schema=schema)


def compile_prompt(prompt: Prompt | None) -> Template | Callable[[Sample], str | Sequence[Message]]:
    """Return a template ready to fill, or the function; of None, for a task with solve, its samples' inputs.

    Raises:
        LLMEvaluationError: It is neither, or the template cannot be read.
    """
    if prompt is None:
        return solve_content
    if isinstance(prompt, str):
        return Template.parse(prompt)
    if callable(prompt):
        return prompt
    raise LLMEvaluationError(f"A prompt is a template or a function of a sample; got {type(prompt).__name__}.")


def describe_prompt(prompt: Prompt | None) -> str:
    """Return the template, or the name of the function. An edited function shows in the messages that it renders."""
    if prompt is None:
        return SOLVE
    return prompt if isinstance(prompt, str) else f"function {getattr(prompt, '__name__', type(prompt).__name__)}"


def copy_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the generation parameters as a new dictionary.

    Raises:
        LLMEvaluationError: They are no mapping, a name is unknown, or a value is out of range.
    """
    if not isinstance(parameters, Mapping):
        raise LLMEvaluationError(f"parameters is a dictionary, parameters={{...}}; got {type(parameters).__name__}.")
    unknown = sorted(set(parameters) - set(PARAMETERS))
    if unknown:
        raise LLMEvaluationError(f"Unknown parameter {', '.join(unknown)}; known: {', '.join(PARAMETERS)}.")
    try:
        # The request is the only place that knows the ranges of the parameters.
        LLMRequest.model_validate({"messages": "check", **parameters})
    except ValidationError as error:
        raise LLMEvaluationError(f"A parameter has a bad value: {'; '.join(describe_validation(error))}") from None
    return dict(parameters)
