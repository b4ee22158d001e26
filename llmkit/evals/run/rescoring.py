"""Scores of new answers, and of stored ones when a scorer failed, was added or edited."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmkit.errors import LLMBudgetExhausted, LLMInProgress
from llmkit.eval_ports import EvalOutcome, EvalResult, EvalRun, EvalStore
from llmkit.evals.answer_type import AnswerType
from llmkit.evals.call_names import content_digest_of
from llmkit.evals.dataset.dataset import Sample
from llmkit.evals.results import FAILED, ResultKey
from llmkit.evals.run.budget_guard import BudgetGuard
from llmkit.evals.run.plan import Plan
from llmkit.evals.run.result_builder import replace_scores
from llmkit.evals.scorers import Scores, ScoringContext, apply_scorers

__all__ = ["Scoring"]


class Scoring:
    """The scorers of a plan at work on a run.

    Args:
        plan: Whose scorers.
        run: The run.
        store: Where stored outputs are read, and their new scores written.
        keeper: Of the run's budget, which judges count against.
    """

    def __init__(self, plan: Plan, run: EvalRun, store: EvalStore, guard: BudgetGuard) -> None:
        self._plan = plan
        self._run = run
        self._store = store
        self._guard = guard
        self._edited = run.spec.get("scorers_sha256") != plan.task.scorers_sha256
        self._names = {scorer.name for scorer in plan.scorers}

    def is_stale(self, outcome: EvalOutcome) -> bool:
        """Return whether a stored result is to be scored again, or to follow an edit of its sample."""
        if self._is_edited(outcome):
            return True
        return outcome.has_output and (self._edited or not self._names <= outcome.scores)

    def _is_edited(self, outcome: EvalOutcome) -> bool:
        content = self._plan.sample_digests.get(outcome.sample_id)
        return content is not None and content_digest_of(outcome) != content

    async def rescore(self, key: ResultKey) -> bool:
        """Score a stored output; False when it is gone, judged by another process, or beyond the budget of judges.

        The group becomes that of the sample, and the content digest says what the scores are of.

        Raises:
            LLMStoreError: The database failed.
        """
        if self._guard.stopped_by and self._plan.judges():
            return False
        result = await self._store.get_result(self._run.id, *key)
        sample = self._plan.dataset.by_id.get(key.sample_id)
        if result is None or sample is None:
            return False
        fresh = replace(result, sample_group=sample.group, content_digest=self._plan.sample_digests[sample.key])
        if result.output_json is not None:
            try:
                fresh = replace_scores(fresh, await self._scores_of_stored(result))
            except (LLMBudgetExhausted, LLMInProgress):
                # Another process has the judge's call under way, and will store its score.
                return False
        elif result.status != FAILED:
            return False
        if fresh != result:
            await self._store.save_result(fresh)
        return True

    async def _scores_of_stored(self, result: EvalResult) -> Scores:
        try:
            output = _read_output(self._plan.answer, result)
        except Exception as error:  # noqa: BLE001 (a validator of the user's type that was edited may raise anything)
            problem = f"the stored output does not fit any more: {type(error).__name__}"
            return Scores(errors={scorer.name: problem for scorer in self._plan.scorers})
        return await self.scores(result.pipeline_run_id, output, self._plan.dataset.by_id[result.sample_id])

    async def scores(self, call_name: str, output: Any, sample: Sample) -> Scores:
        """Score an output with every scorer.

        Args:
            call_name: The result's `pipeline_run_id`.
            output: What the model gave.
            sample: What it was asked.

        Raises:
            LLMBudgetExhausted: There is no room for a judge's call any more.
            LLMStoreError: A judge's call could not be recorded.
        """
        # One service for all: a judge is the same model whatever policy the answer came by.
        plan = self._plan
        context = ScoringContext(plan.service, plan.extract, self._run.workspace_id, call_name)
        return await apply_scorers(
            plan.scorers, output, sample, context, timeout_s=plan.scorer_timeout_s, answer=plan.answer
        )


def _read_output(answer: AnswerType, result: EvalResult) -> Any:
    """Return a stored output as it was when it was scored first.

    Raises:
        ValidationError: It does not fit the type.
    """
    if result.answer_json is None:
        return answer.read_json(result.output_json or "null")
    # Imported here: Pydantic AI takes a second, and a report does without.
    from llmkit.pydanticai.output_shape import OutputShape

    return OutputShape.of(answer.declared).read_json(result.answer_json)
