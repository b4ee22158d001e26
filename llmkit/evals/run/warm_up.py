"""Loading the models before anything is measured: the first sample's latency would be that of its model's loading."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from llmkit.errors import LLMStoreError
from llmkit.eval_ports import EvalRun
from llmkit.evals.call_names import warm_up_name
from llmkit.evals.dataset.dataset import Sample
from llmkit.evals.run.plan import Plan
from llmkit.evals.tasks.variant import ResolvedVariant
from llmkit.pricing import is_free
from llmkit.types import WARM_UP_STAGE, LLMConstraints, LLMRequest, RequestContext, ResponseFormat, Route, utc_now

__all__ = ["WARM_UP_FROM", "find_cold_models", "warm_up"]

# With fewer samples to ask of a route, one more would cost more time than it makes right.
WARM_UP_FROM = 20
# Ollama unloads a model that was not called for five minutes.
STAYS_LOADED = timedelta(minutes=4)


def find_cold_models(plan: Plan, last_at_utc: Mapping[str, datetime]) -> dict[Route, ResolvedVariant]:
    """Return the models that may have to be loaded, each with a variant that calls it.

    Those that run here, not called lately.

    A hosted model is neither loaded nor free.

    Args:
        plan: Whose routes.
        last_at_utc: When the last result of each label was made.
    """
    found: dict[Route, ResolvedVariant] = {}
    recently = utc_now() - STAYS_LOADED
    warm = {
        variant.planned
        for variant in plan.variants
        if variant.label in last_at_utc and last_at_utc[variant.label] > recently
    }
    for variant in plan.variants:
        if variant.planned is not None and variant.planned not in warm and is_free(variant.planned):
            found.setdefault(variant.planned, variant)
    return found


async def warm_up(plan: Plan, run: EvalRun, variant: ResolvedVariant, route: Route, sample: Sample) -> None:
    """Ask a model about a sample, and forget the answer. A failure is left for the sample itself to meet.

    The very request of a sample, or Ollama would load the model again for another length of context. Its row has the
    stage `warm_up` and a `pipeline_run_id` apart from those of the samples.

    Raises:
        LLMStoreError: The call could not be recorded.
    """
    request = LLMRequest(
        messages=variant.messages(sample),
        route=route,
        constraints=LLMConstraints(allow_fallback=False),
        response_format=ResponseFormat(json_schema=plan.task.output_type.model_json_schema()),
        use_cache=False,
        **variant.parameters_of(0),
    )
    context = RequestContext(workspace_id=run.workspace_id, pipeline_run_id=warm_up_name(run), stage=WARM_UP_STAGE)
    try:
        await variant.service.chat(request, context)
    except LLMStoreError:
        raise
    except Exception:  # noqa: BLE001 (of the type and text that the sample will meet, and then its row has them)
        return
