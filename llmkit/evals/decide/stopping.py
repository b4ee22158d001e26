"""Stop rule of an evaluation: the samples end when the comparison of two variants is decided."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from llmkit.errors import LLMEvaluationError
from llmkit.eval_ports import EvalResult
from llmkit.evals.results import FAILED, FINAL_CODES, SUCCEEDED
from llmkit.evals.statistics.sequences import BettingTest, compute_confidence_sequence

__all__ = [
    "DECIDED_CODE",
    "Decided",
    "Decision",
    "DecisionWatch",
    "Verdict",
    "note_result",
    "order_units",
    "replay_decision",
]

# The error code of samples that did not run because the comparison was decided before.
DECIDED_CODE = "decided"

Verdict: TypeAlias = Literal["better", "worse", "not decided"]


@dataclass(frozen=True, slots=True)
class Decided:
    """A rule to stop an evaluation of two variants once their comparison is decided.

    The first variant is compared with the second one on the same samples, in an order that the seed decides, by a
    confidence sequence: the chance of a false decision is at most alpha however often the results are looked at, also
    over resumed and shared runs. Groups of samples count as one. Scores have to lie within 0 and 1; a FAILED answer
    counts as the worst one.

    Attributes:
        metric: Name of the score.
        margin: None: decided when one variant is better. Else: decided when the first variant is at most this much
            worse than the second one, or worse by more.
        alpha: Largest chance of a false decision.
        seed: Decides the order of the samples.

    Example:
        >>> Decided("field_match", margin=0.02)
        Decided(metric='field_match', margin=0.02, alpha=0.05, seed=0)
    """

    metric: str
    margin: float | None = None
    alpha: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.margin is not None and not 0 < self.margin < 1:
            raise LLMEvaluationError(f"margin must be above 0 and below 1, or None; got {self.margin!r}.")
        if not 0 < self.alpha < 0.5:
            raise LLMEvaluationError(f"alpha must be above 0 and below 0.5; got {self.alpha!r}.")

    @classmethod
    def parse(cls, text: str) -> Decided:
        """Read `METRIC`, or `METRIC: margin 0.02, alpha 0.1`.

        Raises:
            LLMEvaluationError: The text has another form.
        """
        metric, _colon, rest = text.partition(":")
        settings: dict[str, float] = {}
        for part in filter(None, (part.strip() for part in rest.split(","))):
            name, _space, value = part.partition(" ")
            try:
                settings[name] = float(value)
            except ValueError:
                settings[name] = math.nan
        is_unread = any(map(math.isnan, settings.values()))
        if not metric.strip() or is_unread or settings.keys() - {"margin", "alpha"}:
            raise LLMEvaluationError(
                f"A stop rule is written METRIC or 'METRIC: margin 0.02, alpha 0.05'; got {text!r}."
            )
        return cls(metric.strip(), settings.get("margin"), settings.get("alpha", 0.05))

    @property
    def tested_mean(self) -> float:
        """The mean difference that is tested: 0, or minus the margin."""
        return 0.0 if self.margin is None else -self.margin

    def describe(self, units: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """Return the rule and its units in order as JSON-able data, for `replay_decision`."""
        return {**asdict(self), "units": {name: list(samples) for name, samples in units.items()}}


@dataclass(frozen=True, slots=True)
class Decision:
    """The state of a comparison with a stop rule.

    Attributes:
        rule: The rule.
        a: Label of the first variant.
        b: Label of the second one.
        verdict: `better` or `worse` of the first variant against the tested difference, or `not decided`.
        units: Samples, or groups of samples, on which the verdict and the interval rest.
        difference: Mean difference over them, turned round where less is better; NaN without any.
        low: Lower end of the anytime-valid interval at level `1 - alpha`.
        high: Upper end.
        problem: Why the rule cannot decide; None when it can.
    """

    rule: Decided
    a: str
    b: str
    verdict: Verdict
    units: int
    difference: float
    low: float
    high: float
    problem: str | None = None

    @property
    def is_decided(self) -> bool:
        """Whether the comparison is decided."""
        return self.verdict != "not decided"

    def describe(self) -> str:
        """Return the state in one sentence."""
        level = f"anytime-valid {1 - self.rule.alpha:.0%} interval [{self.low:+.3f}, {self.high:+.3f}]"
        if self.problem:
            return f"The stop rule on {self.rule.metric} cannot decide: {self.problem}."
        where = f"on {self.units:,} samples or groups, {level}"
        if not self.is_decided:
            return f"Not decided: {self.a} minus {self.b} in {self.rule.metric} is {self.difference:+.3f} {where}."
        if self.rule.margin is None:
            winner, loser = (self.a, self.b) if self.verdict == "better" else (self.b, self.a)
            return f"Stopped when decided: {winner} is better than {loser} in {self.rule.metric} {where}."
        margin = f"{self.rule.margin:g}"
        words = f"at most {margin} worse than" if self.verdict == "better" else f"worse by more than {margin} than"
        return f"Stopped when decided: {self.a} is {words} {self.b} in {self.rule.metric} {where}."


def order_units(units: Iterable[str], seed: int) -> list[str]:
    """Return the units in the order of a seeded hash, which does not depend on the other units."""
    return sorted(units, key=lambda unit: hashlib.sha256(f"{seed}:{unit}".encode()).digest())


def note_result(watch: DecisionWatch, result: EvalResult, *, lower_is_better: bool) -> None:
    """Add a result to a watch: an answer that does not fit has the worst score, a failure without an answer none."""
    score = result.scores.get(watch.rule.metric)
    if score is None and result.status == FAILED and result.error_code in FINAL_CODES:
        score = 1.0 if lower_is_better else 0.0
    if score is None and result.status == SUCCEEDED:
        watch.give_up(f"there is no such score; there are: {', '.join(result.scores) or 'none'}")
    watch.note(result.route, result.sample_id, score)


def replay_decision(
    stored: Mapping[str, Any], variants: Sequence[str], results: Iterable[EvalResult], *, lower_is_better: bool
) -> Decision:
    """Return the state of a stored run, from its rule and units as `Decided.describe` returns them."""
    rule = Decided(stored["metric"], stored["margin"], stored["alpha"], stored["seed"])
    watch = DecisionWatch(rule, variants[0], variants[1], stored["units"], lower_is_better=lower_is_better)
    for result in results:
        note_result(watch, result, lower_is_better=lower_is_better)
    return watch.conclude()


class DecisionWatch:
    """Follows the scores of two variants, in whatever order they come, and decides over the order of the rule.

    Only units that are complete, with all units before them, count: an order of arrival, in which easy samples come
    first, has no influence.

    Args:
        rule: The rule.
        a: Label of the first variant.
        b: Label of the second one.
        units: Names of the units in the order of the rule, each with the ids of its samples.
        lower_is_better: Whether less is better.
    """

    def __init__(
        self, rule: Decided, a: str, b: str, units: Mapping[str, Sequence[str]], *, lower_is_better: bool = False
    ) -> None:
        self.rule = rule
        self._labels = (a, b)
        self._units = list(units.items())
        self._sign = -1.0 if lower_is_better else 1.0
        self._scores: dict[tuple[str, str], float | None] = {}
        self._values: list[float] = []
        self._next = 0
        self._test = BettingTest(rule.tested_mean)
        self._verdict: Verdict = "not decided"
        self._problem: str | None = None

    @property
    def is_decided(self) -> bool:
        """Whether the comparison is decided."""
        return self._verdict != "not decided"

    def note(self, label: str, sample_id: str, score: float | None) -> None:
        """Take a result into account; None for one without a score, which is left out of its unit.

        A result of another variant is ignored, and so is a second one of the same sample.
        """
        if label in self._labels:
            # The first score stays: its unit may be in the capital already, and no bet can be taken back.
            self._scores.setdefault((label, sample_id), score)
            self._advance()

    def give_up(self, problem: str) -> None:
        """Note why the rule cannot decide; a decision that stands already stays."""
        self._problem = self._problem or problem

    def conclude(self) -> Decision:
        """Return the present state."""
        found = compute_confidence_sequence(self._values, alpha=self.rule.alpha)
        a, b = self._labels
        return Decision(
            self.rule, a, b, self._verdict, len(self._values), found.mean, found.low, found.high, self._problem
        )

    def _advance(self) -> None:
        """Add the units that are complete now. After the decision none is added, so that it stays."""
        while self._next < len(self._units) and not self.is_decided and self._problem is None:
            samples = self._units[self._next][1]
            if any((label, sample) not in self._scores for sample in samples for label in self._labels):
                return
            self._next += 1
            differences = [d for d in map(self._subtract, samples) if d is not None]
            if differences:
                self._add(math.fsum(differences) / len(differences))

    def _subtract(self, sample_id: str) -> float | None:
        first, second = (self._scores[label, sample_id] for label in self._labels)
        if first is None or second is None:
            return None
        if not (0 <= first <= 1 and 0 <= second <= 1):
            self._problem = f"scores have to lie within 0 and 1; sample {sample_id} has {first:g} and {second:g}"
            return None
        return self._sign * (first - second)

    def _add(self, value: float) -> None:
        self._values.append(value)
        self._test.add(value)
        # Ville's inequality: without a difference the capital reaches 1 / alpha with a chance of alpha at most, ever.
        if self._problem is None and self._test.log_capital >= math.log(1 / self.rule.alpha):
            is_up = self._test.log_capital_up >= self._test.log_capital_down
            self._verdict = "better" if is_up else "worse"
