"""The stop rule at work: order of the samples, and results of this and other processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from llmkit.errors import LLMEvaluationError
from llmkit.eval_ports import EvalResult, EvalRun, EvalStore
from llmkit.evals.dataset.dataset import Dataset
from llmkit.evals.decide.stopping import Decided, Decision, DecisionWatch, note_result, order_units
from llmkit.evals.tasks.variant import ResolvedVariant

__all__ = ["StopRule", "group_units", "require_decidable", "sort_by_rule"]

# Reading the results of other processes costs a query of the whole run.
LOOK_EVERY_S = 5.0


def require_decidable(
    rule: Decided | None, variants: Sequence[ResolvedVariant], epochs: int, scorers: Sequence[str]
) -> Decided | None:
    """Return the rule; refuse one that this evaluation cannot follow.

    Raises:
        LLMEvaluationError: There are not two variants, several epochs, or no scorer gives the metric.
    """
    if rule is None:
        return None
    if len(variants) != 2:
        raise LLMEvaluationError(f"stop_when compares two variants; this evaluation has {len(variants)}.")
    if epochs > 1:
        raise LLMEvaluationError(f"stop_when needs epochs=1, since a sample counts when it is complete; got {epochs}.")
    if not any(rule.metric == name or rule.metric.startswith(f"{name}.") for name in scorers):
        known = ", ".join(scorers) or "none"
        raise LLMEvaluationError(f"stop_when names the metric {rule.metric!r}; the scorers are: {known}.")
    return rule


def sort_by_rule(selected: Dataset, rule: Decided | None) -> Dataset:
    """Return the samples in the order of the rule, those of a group beside each other; unchanged without a rule."""
    if rule is None:
        return selected
    units = group_units(selected, rule)
    by_id = selected.by_id
    return replace(selected, samples=tuple(by_id[name] for names in units.values() for name in names))


def group_units(selected: Dataset, rule: Decided) -> dict[str, list[str]]:
    """Return the ids of the samples of each unit, in the order of the rule: groups, and samples without one."""
    units: dict[str, list[str]] = {}
    for sample in selected:
        name = f"sample:{sample.key}" if sample.group is None else f"group:{sample.group}"
        units.setdefault(name, []).append(sample.key)
    return {name: units[name] for name in order_units(units, rule.seed)}


class StopRule:
    """Notes results as they are stored, and knows when the comparison is decided; without a rule it never is."""

    def __init__(
        self,
        rule: Decided | None,
        variants: Sequence[str],
        units: Mapping[str, Sequence[str]],
        *,
        lower_is_better: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rule = rule
        self._lower = lower_is_better
        self._watch = (
            None
            if rule is None
            else DecisionWatch(rule, variants[0], variants[1], units, lower_is_better=lower_is_better)
        )
        self._clock = clock
        self._next_look_s = -float("inf")

    @property
    def is_active(self) -> bool:
        """Whether there is a rule."""
        return self._watch is not None

    @property
    def is_decided(self) -> bool:
        """Whether the comparison is decided."""
        return self._watch is not None and self._watch.is_decided

    def note(self, results: Iterable[EvalResult]) -> None:
        """Take results into account that are final."""
        if self._watch is not None:
            for result in results:
                note_result(self._watch, result, lower_is_better=self._lower)

    async def look_at_others(self, run: EvalRun, store: EvalStore) -> None:
        """Take results of other processes into account, at most every five seconds."""
        if self._watch is None or self.is_decided or self._clock() < self._next_look_s:
            return
        self._next_look_s = self._clock() + LOOK_EVERY_S
        self.note(await store.list_results(run.id))

    def conclude(self) -> Decision | None:
        """Return the present state; None without a rule."""
        return None if self._watch is None else self._watch.conclude()
