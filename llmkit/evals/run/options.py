"""Options of `evaluate`: names, types, defaults and documentation.

Types of other modules are written as strings, so that `Session` can show the options without loading the engine. A
default other than None is metadata: `Annotated[int, {"default": 1}]`.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypedDict

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from llmkit.evals.budget import Budget
    from llmkit.evals.decide.stopping import Decided
    from llmkit.evals.run.progress import Progress
    from llmkit.pydanticai.extraction import Extraction
    from llmkit.service import LLMService

__all__ = ["EvaluateOptions", "Extractor"]

# The type of `llmkit.pydanticai.extraction.extract`.
Extractor: TypeAlias = "Callable[..., Awaitable[Extraction[Any]]]"


class EvaluateOptions(TypedDict, total=False):
    """Options of `evaluate`, all of them optional.

    Attributes:
        epochs: Repeats of every sample. A seed grows by one from repeat to repeat.
        limit: Only the first N samples of the dataset; default all.
        concurrency: Most samples in progress at once; "auto" for `concurrency_limit`, of which each provider gets as
            many as it can handle. Without a session the default is 8.
        warm_up: Whether each model on your own machines is called once, unmeasured, before its first sample, so that
            loading it affects no latency. Only if at least 20 samples are open for its route.
        progress: True for a progress bar on stderr, False for none, or a function of `Progress`.
        retry_failed: True repeats failures without an answer from the model. An answer that does not fit, or was cut,
            is a result and stays: repeating it until it fits would flatter the model. "all" repeats these too (a stored
            answer is served from the store), False repeats none.
        parameters: Generation parameters on top of the task's.
        reasks: How often to ask a model again, with its validation errors.
        scorer_timeout_s: Longest time for one scorer on one sample, in seconds; longer is a scorer error. Judges have
            their own limit. None for no limit.
        stop_when: Stops once the comparison of two variants is decided; see `Decided`. None for no such stop.
        policies: Services that route by another policy, for routes written `policy:NAME`.
        budget: Most tokens, US dollars and seconds for the run; None for no limit. See `Budget`.
        extract: Replaces `llmkit.pydanticai.extraction.extract`.
    """

    epochs: Annotated[int, {"default": 1}]
    limit: int | None
    concurrency: Annotated[int | Literal["auto"], {"default": "auto"}]
    warm_up: Annotated[bool, {"default": True}]
    progress: Annotated["bool | Callable[[Progress], None]", {"default": True}]
    retry_failed: Annotated[bool | Literal["all"], {"default": True}]
    parameters: Mapping[str, Any] | None
    reasks: Annotated[int, {"default": 1}]
    scorer_timeout_s: Annotated[float | None, {"default": 60}]
    stop_when: "Decided | None"
    policies: "Mapping[str, LLMService]"
    budget: "Budget | None"
    extract: "Extractor | None"
