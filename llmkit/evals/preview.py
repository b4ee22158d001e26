"""Preview of a task's data: what is sent for a sample, and what its target is compared as. Calls nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import RootModel
from pydantic_core import to_jsonable_python

from llmkit.errors import LLMEvaluationError
from llmkit.evals.answer_type import ROOT
from llmkit.evals.dataset.dataset import Sample
from llmkit.evals.prompt import as_messages, content_of
from llmkit.evals.scorers import Scorer
from llmkit.evals.scorers.base import Options
from llmkit.evals.scorers.conversion import convert_target
from llmkit.evals.solve.function import name_solve
from llmkit.evals.tasks.task import Task, compile_prompt
from llmkit.types import Message

__all__ = ["Preview", "SamplePreview", "preview_task"]

MOST_PROBLEMS = 5


@dataclass(frozen=True, slots=True)
class SamplePreview:
    """One sample as a run would use it.

    Attributes:
        id: Its id.
        place: Where it stands in the dataset; "" where that is not known.
        group: Its group.
        messages: Messages that are sent for it.
        target: Its target, as it is given.
        compared: The target as it is compared: by field for a type with fields.
        read: What scorers that read the target in their own way make of it, by scorer.
        converted: Values that are compared as something else than they are given as, in words.
        metadata: Its metadata.
        problem: Reason why a run would be refused because of it; "" for none.
    """

    id: str
    place: str
    group: str | None
    messages: tuple[Message, ...]
    target: Any
    compared: Any
    read: Mapping[str, str]
    converted: tuple[str, ...]
    metadata: Mapping[str, Any]
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Preview:
    """A task's data, checked as before a run.

    Attributes:
        task: Name of the task.
        source: Name of the dataset.
        samples: Number of samples.
        groups: Number of groups.
        without_target: Number of samples without a target.
        shown: The first samples.
        converted: How many targets were converted, by field and kind of conversion.
        problems: Reasons why a run would be refused, the first ones.
        refused: Number of samples with such a reason.
    """

    task: str
    source: str
    samples: int
    groups: int
    without_target: int
    shown: tuple[SamplePreview, ...]
    converted: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    refused: int = 0


def preview_task(task: Task, count: int = 5) -> Preview:
    """Read the dataset of a task, and check every prompt and target. Calls nothing.

    Args:
        task: The task.
        count: Number of samples to show.

    Raises:
        LLMDatasetError: The dataset cannot be read; the message names file, line and field.
    """
    dataset = task.load()
    prompts = [compile_prompt(prompt) for prompt in (task.prompt, *task.prompts.values())]
    scorers = [scorer for scorer in task.scorer_objects if isinstance(scorer, Options)]
    shown: list[SamplePreview] = []
    kinds: Counter[str] = Counter()
    problems: list[str] = []
    refused = 0
    for sample in dataset:
        converted: list[tuple[str, Any, Any]] = []
        compared, problem = sample.target, ""
        try:
            for prompt in prompts:
                content_of(prompt, sample)
            for scorer in scorers if not task.answer.is_open else ():
                scorer.check_target(task.answer.view, sample)
            compared, converted = _convert(task, sample, scorers)
        except LLMEvaluationError as error:
            refused += 1
            problem = str(error)
            if len(problems) < MOST_PROBLEMS:
                place = dataset.find_place(sample)
                problems.append(f"{place}: {problem}" if place else problem)
        for name, before, after in converted:
            is_text = isinstance(before, str) and isinstance(after, str)
            kinds[f"{name}: {'spaces' if is_text else f'{_name_kind(before)} to {_name_kind(after)}'}"] += 1
        if len(shown) < count:
            shown.append(
                SamplePreview(
                    id=sample.key,
                    place=dataset.find_place(sample),
                    group=sample.group,
                    messages=_render(task, sample),
                    target=sample.target,
                    compared=compared,
                    read=dict(_read_targets(task, sample, scorers)),
                    converted=tuple(f"{name}: {_show(before)} as {_show(after)}" for name, before, after in converted),
                    metadata=sample.metadata,
                    problem=problem,
                )
            )
    return Preview(
        task=task.name,
        source=dataset.source,
        samples=len(dataset),
        groups=len({sample.group for sample in dataset if sample.group is not None}),
        without_target=sum(sample.target is None for sample in dataset),
        shown=tuple(shown),
        converted=dict(kinds),
        problems=tuple(problems),
        refused=refused,
    )


def _render(task: Task, sample: Sample) -> tuple[Message, ...]:
    if task.solve is not None:
        # What a function sends is known only when it runs.
        text = sample.input if isinstance(sample.input, str) else json.dumps(sample.input, ensure_ascii=False)
        return (Message(role="user", content=f"(as {name_solve(task.solve)} gets it) {text}"),)
    try:
        return as_messages(content_of(compile_prompt(task.prompt), sample), task.system)
    except LLMEvaluationError:
        # The reason is among the problems.
        return ()


def _convert(task: Task, sample: Sample, scorers: Sequence[Options]) -> tuple[Any, list[tuple[str, Any, Any]]]:
    """Return the target as scorers compare it, and each value that differs from what was given."""
    if sample.target is None or task.answer.is_open or not any(scorer.reads_fields for scorer in scorers):
        return sample.target, []
    view = task.answer.view
    try:
        values = convert_target(view, sample).values
    except ValueError:
        return sample.target, []
    if issubclass(view, RootModel):
        compared = values[ROOT]
        is_converted = _is_converted(sample.target, compared)
        return compared, [("target", sample.target, compared)] if is_converted else []
    shown: dict[str, Any] = {}
    converted: list[tuple[str, Any, Any]] = []
    for name, value in values.items():
        info = view.model_fields.get(name)
        aliases = [] if info is None else [info.alias, info.validation_alias]
        # By the names that the data has, where it has them: a field of the type may have another one in JSON.
        names = [each for each in (name, *aliases) if isinstance(each, str)]
        keys = [key for key in names if isinstance(sample.target, dict) and key in sample.target]
        given = sample.target[keys[0]] if keys else sample.target  # type: ignore[index,call-overload]  # keys are of it
        label = keys[0] if keys else names[-1]
        shown[label] = value
        # A field that is filled from inside another one cannot be compared with what was given.
        if (keys or len(values) == 1) and _is_converted(given, value):
            converted.append((label, given, value))
    return shown, converted


def _is_converted(given: Any, value: Any) -> bool:
    return bool(_plain(value) != given or _name_kind(value) != _name_kind(given))


def _read_targets(task: Task, sample: Sample, scorers: Sequence[Scorer]) -> Iterator[tuple[str, str]]:
    for scorer in scorers:
        describe = getattr(scorer, "describe_target", None)
        try:
            text = None if describe is None else describe(task.answer.view, sample)
        except LLMEvaluationError:
            continue
        if text is not None:
            yield scorer.name, text


def _plain(value: Any) -> Any:
    return to_jsonable_python(value, by_alias=True, fallback=repr)


def _show(value: Any) -> str:
    text = json.dumps(_plain(value), ensure_ascii=False)
    # A date and its text look alike in JSON, and so do a set and a list.
    return (
        text if value is None or type(value) in (str, bool, int, float, list, dict) else f"{_name_kind(value)} {text}"
    )


def _name_kind(value: Any) -> str:
    names = {str: "text", bool: "true or false", int: "number", float: "number", dict: "object", type(None): "nothing"}
    return names.get(type(value), type(value).__name__)
