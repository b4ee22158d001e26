"""Policies at work: one course for each sample, of calls that are really sent."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from llmkit.canonical_json import sha256_of
from llmkit.errors import (
    LLMBudgetExhausted,
    LLMError,
    LLMEvaluationError,
    LLMInProgress,
    LLMInvalidOutput,
    LLMStoreError,
)
from llmkit.evals.dataset.dataset import Sample
from llmkit.evals.policies import (
    MAX_STEPS,
    Below,
    Cascade,
    Condition,
    Mix,
    Policy,
    PolicyFunction,
    RecordedStep,
    Split,
    call_function,
    count_epochs,
    ends_policy,
    is_logprob,
    list_conditions,
    list_measured_variants,
    needs_fit,
    read_key,
    read_signal,
)
from llmkit.evals.results import FAILED, FALLBACK_WARNING, SUCCEEDED
from llmkit.types import Attempt, LLMResponse, PlanEntry, Route, RoutePlan, ServedFrom, TokenUsage, copy_with

if TYPE_CHECKING:
    from llmkit.pydanticai.extraction import Extraction

__all__ = [
    "Ask",
    "Course",
    "Step",
    "StepCall",
    "join_extractions",
    "join_responses",
    "make_step",
    "read_logprobs",
    "read_output",
    "require_runnable",
]

# A failure of the store or of a budget says nothing about the answer, and another model would meet it too.
NOT_OF_THE_ANSWER = (LLMStoreError, LLMBudgetExhausted, LLMInProgress, LLMEvaluationError)
LONGEST_KEY_PART = 180


class StepCall(NamedTuple):
    """One call that a policy makes.

    Attributes:
        policy: Name of the policy.
        number: Position of the call among those of the sample, from 0.
        label: The variant to call.
        because: Why it is called, in words.
        epoch: Number of the repeat, different for every call of one variant.
        repeat: How many times the variant was called before, to be compared with itself.
        needs_logprobs: Whether a condition reads the log-probabilities of the answer.
    """

    policy: str
    number: int
    label: str
    because: str
    epoch: int
    repeat: int
    needs_logprobs: bool = False

    def name_key(self, key: str) -> str:
        """Return the idempotency key of the call. It depends on nothing that a restart could change.

        Args:
            key: That of the sample.
        """
        return f"{key[:LONGEST_KEY_PART]}~{sha256_of([key, self.number, self.label])[:24]}"

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata for the record of the call."""
        return {"policy": {"name": self.policy, "step": self.number, "variant": self.label, "because": self.because}}


@dataclass(frozen=True, slots=True)
class Step:
    """Result of one call.

    Attributes:
        call: The call.
        found: The `Extraction` or `LLMResponse`; None after a failure.
        error: The failure.
        output: The answer as JSON value.
        outcome: `first_try`, `repaired` or `reasked`.
        logprobs: Log-probabilities of the answer, by the names that `Below` takes.
    """

    call: StepCall
    found: Any = None
    error: LLMError | None = None
    output: Any = None
    outcome: str | None = None
    logprobs: Mapping[str, float] = field(default_factory=dict)

    @property
    def record(self) -> RecordedStep:
        """The step as policy functions see it."""
        code = None if self.error is None else self.error.code
        return RecordedStep(
            self.call.label, FAILED if code else SUCCEEDED, self.output, self.outcome, code, self.logprobs
        )

    @property
    def responses(self) -> tuple[LLMResponse, ...]:
        """Answers of the model, in order; also those that did not fit."""
        if self.found is None:
            return self.error.responses if isinstance(self.error, LLMInvalidOutput) else ()
        return (self.found,) if isinstance(self.found, LLMResponse) else tuple(self.found.responses)

    @property
    def lost_attempts(self) -> tuple[Attempt, ...]:
        """Requests that no response has: those of a failure."""
        return () if self.error is None or self.responses else self.error.attempts


# Makes one call. It returns what came of it, and raises only what ends the course.
Ask = Callable[[StepCall], Awaitable[Step]]


def require_runnable(policy: Policy, *, is_text: bool = False) -> None:
    """Refuse a policy that cannot run for real.

    Args:
        policy: The policy.
        is_text: Whether answers are plain text, which neither fit nor have fields.

    Raises:
        LLMEvaluationError: A choice is open, or a condition needs what a call does not give; the message says what to
            do.
    """
    if needs_fit(policy):
        raise LLMEvaluationError(
            "The policy has a threshold or a choice that is not made yet: use report.fit_policy(policy), or set it."
        )
    for cascade, condition in list_conditions(policy):
        if condition == "epochs_disagree" and cascade.epochs is None:
            raise LLMEvaluationError(
                "To run 'epochs_disagree', say how many answers to compare: Cascade(..., epochs=3)."
            )
        if is_text and condition in ("repaired", "reasked"):
            raise LLMEvaluationError(
                f"{condition!r} is known only of typed answers: use extract, or another condition."
            )
        signal = condition.signal if isinstance(condition, Below) else None
        if is_text and isinstance(signal, str) and not is_logprob(signal):
            raise LLMEvaluationError(
                f"Below({signal!r}) reads a field, and chat answers with text: use extract, or a function of the text."
            )


class Course:
    """The calls that a policy makes for one sample and epoch, one after the other.

    Args:
        name: Name of the policy.
        policy: The policy, without open choices.
        sample: The sample.
        epoch: Number of the repeat.
        ask: Makes a call.

    Attributes:
        steps: What came of the calls so far.
    """

    def __init__(self, name: str, policy: Policy, sample: Sample, epoch: int, ask: Ask) -> None:
        self.steps: list[Step] = []
        self._name = name
        self._policy = policy
        self._sample = sample
        self._stride = count_epochs(policy)
        self._measured = list_measured_variants(policy)
        self._epoch = epoch
        self._ask = ask

    async def run(self) -> Step:
        """Make the calls, and return the last step, which is the answer or the error of the policy.

        Raises:
            LLMError: Something ended the course: the store, a budget, a failure that no other model mends; with the
                attempts of all calls.
        """
        try:
            answer = await self._follow(self._policy, "the policy begins with it")
        except LLMError as error:
            self._add_attempts(error)
            raise
        if answer.error is not None:
            self._add_attempts(answer.error)
        # Steps that only decided come before the answer, as in a forecast.
        self.steps = [*(step for step in self.steps if step is not answer), answer]
        return answer

    def _add_attempts(self, error: LLMError) -> None:
        earlier = [step for step in self.steps if step.error is not error]
        sent = [each for step in earlier for response in step.responses for each in response.attempts]
        lost = [each for step in earlier for each in step.lost_attempts]
        error.attempts = (*sent, *lost, *error.attempts)

    async def _follow(self, policy: Policy, because: str) -> Step:
        match policy:
            case str():
                return await self._call(policy, because)
            case Cascade():
                first = await self._follow(policy.first, because)
                reason = await self._find_reason(policy, first)
                return first if reason is None else await self._follow(policy.second, reason)
            case Split():
                return await self._follow(*await self._choose(policy))
            case Mix():
                is_second = self._draw(policy) < policy.share
                return await self._follow(policy.second if is_second else policy.first, "drawn")
            case _:
                return await self._obey(policy)

    async def _call(self, label: str, because: str, repeat: int = 0) -> Step:
        epoch = self._epoch * self._stride + repeat
        needs_logprobs = label in self._measured
        call = StepCall(self._name, len(self.steps), label, because, epoch, repeat, needs_logprobs)
        try:
            step = await self._ask(call)
        except NOT_OF_THE_ANSWER:
            raise
        except LLMError as error:
            if ends_policy(error.code):
                raise
            step = Step(call, error=error)
        self.steps.append(step)
        return step

    async def _find_reason(self, cascade: Cascade, first: Step) -> str | None:
        """Return why the cascade goes on, in words; None where the first answer stays."""
        label = first.call.label
        if first.error is not None:
            return f"{label} failed: {first.error.code}"
        for condition in cascade.conditions:
            if condition == "epochs_disagree":
                # One after the other, as the forecast adds up their times.
                repeats = [
                    await self._call(label, "compared with itself", repeat) for repeat in range(1, cascade.epochs or 1)
                ]
                if len({json.dumps(step.output, sort_keys=True) for step in (first, *repeats)}) > 1:
                    return f"the answers of {label} disagree"
            elif reason := await self._check(condition, first):
                return reason
        return None

    async def _check(self, condition: Condition, first: Step) -> str | None:
        label = first.call.label
        if isinstance(condition, str):
            return f"{label} {condition}" if first.outcome == condition else None
        if isinstance(condition, Below):
            name = condition.signal if isinstance(condition.signal, str) else "the signal"
            # The user's function may take long, and the session's loop has other calls.
            value = await asyncio.to_thread(read_signal, condition.signal, first.output, self._sample, first.logprobs)
            if value is None:
                return f"{label} gave no {name}"
            limit = condition.threshold
            return f"{name} {value:.4g} is below {limit:.4g}" if limit is not None and value < limit else None
        is_met = await asyncio.to_thread(call_function, condition, first.output, self._sample)
        return f"{getattr(condition, '__name__', 'the condition')} of the answer of {label}" if is_met else None

    async def _choose(self, split: Split) -> tuple[Policy, str]:
        value = await asyncio.to_thread(read_key, split, self._sample)
        by = split.by if isinstance(split.by, str) else getattr(split.by, "__name__", "the function")
        assert isinstance(split.choose, Mapping)
        policy = split.choose.get(value, split.default)
        if policy is None:
            known = ", ".join(map(repr, split.choose))
            raise LLMEvaluationError(f"The policy has no choice for {by} {value!r}; it has {known}. Give it a default.")
        return policy, f"{by} is {value!r}"

    def _draw(self, mix: Mix) -> float:
        """Return a number from 0 to 1 that depends on the sample alone, so that a restart goes the same way."""
        parts = json.dumps([self._name, self._sample.key, self._epoch, mix.share])
        return int.from_bytes(hashlib.sha256(parts.encode()).digest()[:8]) / 2**64

    async def _obey(self, function: PolicyFunction) -> Step:
        answer: Step | None = None
        for _ in range(MAX_STEPS):
            records = tuple(step.record for step in self.steps)
            label = await asyncio.to_thread(call_function, function, self._sample, records)
            if label is None:
                if answer is None:
                    raise LLMEvaluationError("The policy called nothing: it returned None at once.")
                return answer
            repeat = sum(step.call.label == label for step in self.steps)
            answer = await self._call(label, f"{getattr(function, '__name__', 'the function')} says so", repeat)
        raise LLMEvaluationError(f"The policy called {MAX_STEPS} variants for one sample; return None to end.")


def make_step(call: StepCall, found: Extraction[Any], output: Any, planned: Route | None = None) -> Step:
    """Return the step of an extraction.

    Args:
        call: The call.
        found: What came of it.
        output: Its value as JSON value.
        planned: The route that should have answered, if one was.
    """
    last = found.responses[-1]
    if planned is not None and last.route != planned:
        warning = f"{FALLBACK_WARNING} {last.route} answered instead of {planned}"
        last = copy_with(last, warnings=(*last.warnings, warning))
        found = replace(found, responses=(*found.responses[:-1], last))
    return Step(call, found, output=output, outcome=found.outcome, logprobs=read_logprobs(last))


def read_logprobs(response: LLMResponse) -> dict[str, float]:
    """Return the log-probabilities of an answer's tokens under the names that `Below` knows them by."""
    found = response.logprobs
    if found is None:
        return {}
    known = {"logprob_mean": found.mean, "logprob_min": found.min}
    for path, of_field in found.fields.items():
        known |= {f"logprob_mean.{path}": of_field.mean, f"logprob_min.{path}": of_field.min}
    return known


def read_output(extraction: Extraction[Any]) -> Any:
    """Return the value of an extraction as JSON value, as an evaluation stores it."""
    if isinstance(extraction.value, str):
        return extraction.value
    try:
        return json.loads(extraction.value.model_dump_json(by_alias=True, round_trip=True))
    except Exception:  # noqa: BLE001 (a serialiser of the user's type may raise anything, and the answer is paid for)
        answer = json.loads(extraction.answer_json or "null")
    is_wrapped = (
        not hasattr(extraction.value, "model_dump_json") and isinstance(answer, dict) and [*answer] == ["response"]
    )
    return answer["response"] if is_wrapped else answer


def join_extractions(steps: Sequence[Step]) -> Extraction[Any]:
    """Return the last extraction with the requests, tokens and time of all steps."""
    last: Extraction[Any] = steps[-1].found
    responses = tuple(response for step in steps for response in step.responses)
    described = tuple(_describe_course(steps))
    if described:
        answer = copy_with(responses[-1], warnings=(*responses[-1].warnings, *described))
        responses = (*responses[:-1], answer)
    lost = tuple(attempt for step in steps for attempt in step.lost_attempts)
    usages = [response.usage for response in responses] + [attempt.usage for attempt in lost]
    latencies = [response.latency_ms for response in responses] + [attempt.latency_ms for attempt in lost]
    return replace(
        last,
        responses=responses,
        usage=TokenUsage.total(usages),
        latency_ms=sum(latencies),
        warnings=(*last.warnings, *described),
        lost_attempts=lost,
    )


def join_responses(steps: Sequence[Step]) -> LLMResponse:
    """Return the last response with the requests, tokens, cost and time of all steps, and with their plan."""
    last: LLMResponse = steps[-1].found
    responses = [response for step in steps for response in step.responses]
    lost = [attempt for step in steps for attempt in step.lost_attempts]
    costs = [response.cost_usd for response in responses] + [attempt.cost_usd for attempt in lost]
    is_billed = any(response.billed for response in responses) or bool(lost)
    return copy_with(
        last,
        usage=TokenUsage.total([*(each.usage for each in responses), *(each.usage for each in lost)]),
        latency_ms=sum(each.latency_ms for each in responses) + sum(each.latency_ms for each in lost),
        cost_usd=None if None in costs else sum(cost for cost in costs if cost is not None),
        attempts=(*lost, *(attempt for each in responses for attempt in each.attempts)),
        served_from=ServedFrom.PROVIDER if is_billed else last.served_from,
        requested_route=None,
        plan=_make_plan(steps),
        warnings=(*last.warnings, *_describe_course(steps)),
    )


def _describe_course(steps: Sequence[Step]) -> list[str]:
    """Return a sentence on the way to the answer; none for a single call."""
    if len(steps) == 1:
        return []
    last = steps[-1].call
    return [f"{last.policy}: {len(steps)} calls; {last.label} answered, because {last.because}"]


def _make_plan(steps: Sequence[Step]) -> RoutePlan:
    entries = [
        PlanEntry(
            route=route, reason=step.call.because, facts="" if step.error is None else f"failed: {step.error.code}"
        )
        for step in steps
        if (route := _find_route(step)) is not None
    ]
    return RoutePlan(policy=f"policy:{steps[-1].call.policy}", entries=tuple(entries))


def _find_route(step: Step) -> Route | None:
    if step.responses:
        return step.responses[-1].route
    error = step.error
    if error is None or error.provider is None or error.model is None:
        return None
    return Route(provider=error.provider, model=error.model)
