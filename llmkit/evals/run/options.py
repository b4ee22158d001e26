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
    from llmkit.evals.policies import Policy
    from llmkit.evals.run.progress import Progress
    from llmkit.prices.price_list import PriceList
    from llmkit.pydanticai.extraction import Extraction
    from llmkit.service import LLMService

__all__ = ["EvaluateOptions", "Extractor", "ScoreOptions"]

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
        show_answers: Whether the latest answers are shown below the bar while it runs, failures first, redacted: in a
            notebook or a terminal, nowhere else. In a session the default is `LLM_SHOW_ANSWERS`.
        retry_failed: True repeats failures without an answer from the model. An answer that does not fit, or was cut,
            is a result and stays: repeating it until it fits would flatter the model. "all" repeats these too (a stored
            answer is served from the store), False repeats none.
        parameters: Generation parameters on top of the task's.
        reasks: How often to ask a model again, with its validation errors.
        scorer_timeout_s: Longest time for one scorer on one sample, in seconds; longer is a scorer error. Judges have
            their own limit. None for no limit.
        solve_timeout_s: Longest time for which the function of a task may go on without a call of its model under way,
            in seconds; longer is a failed sample. None for no limit.
        stop_when: Stops once the comparison of two variants is decided; see `Decided`. None for no such stop.
        policies: What `policy:NAME` stands for: a `Cascade`, `Split`, `Mix` or function of labels such as
            `provider/model`, or a service that routes by another policy. In a session those of `Session.policy` are
            known already.
        budget: Most tokens, US dollars and seconds for the run; None for no limit. See `Budget`.
        prices: Your own prices, for a budget in US dollars; in a session those of `llmkit cost prices`.
        extract: Replaces `llmkit.pydanticai.extraction.extract`.
    """

    epochs: Annotated[int, {"default": 1}]
    limit: int | None
    concurrency: Annotated[int | Literal["auto"], {"default": "auto"}]
    warm_up: Annotated[bool, {"default": True}]
    progress: Annotated["bool | Callable[[Progress], None]", {"default": True}]
    show_answers: bool | None
    retry_failed: Annotated[bool | Literal["all"], {"default": True}]
    parameters: Mapping[str, Any] | None
    reasks: Annotated[int, {"default": 1}]
    scorer_timeout_s: Annotated[float | None, {"default": 60}]
    solve_timeout_s: Annotated[float | None, {"default": 600}]
    stop_when: "Decided | None"
    policies: "Mapping[str, LLMService | Policy]"
    budget: "Budget | None"
    prices: "PriceList | None"
    extract: "Extractor | None"


class ScoreOptions(TypedDict, total=False):
    """Options of `score_answers`, all of them optional.

    Attributes:
        answer: Column of a table with the answers; default `output`, `answer`, `prediction`, `response`, `completion`
            or `generation`, or else the columns that are named as fields of the output type.
        id: Column with the ids of the samples; default `sample_id` or `id`. Without one, rows are in the order of the
            dataset.
        variant: Column with the names of what is compared; default `variant`.
        epoch: Column with the number of the repeat, from 0; default `epoch`.
        strict: True refuses samples without an answer and answers without a sample. Otherwise the report states them:
            the former are NOT_RUN, the latter are left out.
        limit: Only the first N samples of the dataset; default all.
        concurrency: Most calls of judges in progress at once; default 8.
        scorer_timeout_s: Longest time for one scorer on one sample, in seconds. Judges have their own limit. None for
            no limit.
        progress: True for a progress bar on stderr, False for none, or a function of three numbers: how many answers
            are scored, how many there are to score, and how many did not fit.
    """

    answer: str | None
    id: str | None
    variant: str | None
    epoch: str | None
    strict: Annotated[bool, {"default": False}]
    limit: int | None
    concurrency: int | None
    scorer_timeout_s: Annotated[float | None, {"default": 60}]
    progress: Annotated[bool | Callable[[int, int, int], None], {"default": True}]
