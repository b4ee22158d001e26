"""Loading the models before anything is measured: the first sample's latency would be that of its model's loading."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from datetime import datetime, timedelta
from logging import getLogger

from llmkit.errors import LLMStoreError
from llmkit.eval_ports import EvalRun, EvalStore, HostDigest, HostUse
from llmkit.evals.call_names import warm_up_name
from llmkit.evals.dataset.dataset import Sample
from llmkit.evals.report.notes import note_different_hosts
from llmkit.evals.run.plan import Plan
from llmkit.evals.tasks.task import response_format_of
from llmkit.evals.tasks.variant import ResolvedVariant
from llmkit.pricing import is_free
from llmkit.types import WARM_UP_STAGE, LLMConstraints, LLMRequest, RequestContext, Route, utc_now

__all__ = ["WARM_UP_FROM", "find_cold_models", "find_warm_models", "note_digests_here", "warm_up"]

# With fewer samples to ask of a route, one more would cost more time than it makes right.
WARM_UP_FROM = 20
# Ollama unloads a model that was not called for five minutes.
STAYS_LOADED = timedelta(minutes=4)


async def note_digests_here(plan: Plan, run: EvalRun, store: EvalStore) -> None:
    """Keep the digests of the models that run here, and warn of those that are others on another machine.

    As far as their servers have reported them. The samples are called nevertheless, and the report says it again.
    """
    parts = [part for variant in plan.variants for part in variant.parts if part.planned is not None]
    found = []
    for part in parts:
        assert part.planned is not None
        digest = part.service.router.facts(part.planned).digest
        if digest is not None and is_free(part.planned, part.service.router.endpoints):
            found.append(HostDigest(plan.host, part.planned, digest.value))
    if not found:
        return
    await store.note_digests(run.id, found)
    for note in note_different_hosts(await store.list_host_digests(run.id)):
        getLogger("llmkit.evals").warning("%s", note)


def find_warm_models(plan: Plan, last_at_utc: Mapping[str, datetime], uses: Sequence[HostUse]) -> set[Route | None]:
    """Return the models that were called on this machine lately.

    Args:
        plan: Whose routes.
        last_at_utc: When the last result of each label was made, on any machine.
        uses: Requests of each machine; empty when there are none yet, or they are not known.
    """
    recently = utc_now() - STAYS_LOADED
    if uses:
        return {use.route for use in uses if use.host in (None, plan.host) and use.last_at_utc > recently}
    return {
        part.planned
        for variant in plan.variants
        if variant.label in last_at_utc and last_at_utc[variant.label] > recently
        for part in variant.parts
    }


def find_cold_models(plan: Plan, warm: Container[Route | None]) -> dict[Route, ResolvedVariant]:
    """Return the models that may have to be loaded, each with a variant that calls it.

    Those that run here and are not warm. A hosted model is neither loaded nor free.

    Args:
        plan: Whose routes.
        warm: Models that were called lately.
    """
    found: dict[Route, ResolvedVariant] = {}
    for part in (part for variant in plan.variants for part in variant.parts):
        if (
            part.planned is not None
            and part.planned not in warm
            and is_free(part.planned, part.service.router.endpoints)
        ):
            found.setdefault(part.planned, part)
    return found


async def warm_up(plan: Plan, run: EvalRun, variant: ResolvedVariant, route: Route, sample: Sample) -> None:
    """Ask a model about a sample, and forget the answer. A failure is left for the sample itself to meet.

    The very request of a sample, or Ollama would load the model again for another length of context. Its row has the
    stage `warm_up` and a `pipeline_run_id` apart from those of the samples.

    Raises:
        LLMStoreError: The call could not be recorded.
    """
    parameters = variant.parameters_of(0)
    if plan.task.solve is not None:
        # The requests of a function are not known before it runs, and the answer to its input is of no use.
        parameters["max_output_tokens"] = 1
    request = LLMRequest(
        messages=variant.messages(sample),
        route=route,
        constraints=LLMConstraints(allow_fallback=False),
        response_format=response_format_of(plan.task),
        use_cache=False,
        **parameters,
    )
    context = RequestContext(workspace_id=run.workspace_id, pipeline_run_id=warm_up_name(run), stage=WARM_UP_STAGE)
    try:
        await variant.service.chat(request, context)
    except LLMStoreError:
        raise
    except Exception:  # noqa: BLE001 (of the type and text that the sample will meet, and then its row has them)
        return
