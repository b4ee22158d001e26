"""Names of calls in a run: idempotency keys, ids in names, and the digests that find edited samples."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import count

from llmkit.canonical_json import sha256_of
from llmkit.errors import LLMEvaluationError
from llmkit.eval_ports import EvalOutcome, EvalResult, EvalRun, EvalStore
from llmkit.evals.tasks.task import Task
from llmkit.evals.tasks.variant import DIGEST_LENGTH
from llmkit.types import WARM_UP_STAGE

__all__ = [
    "LONGEST_NAME",
    "call_name",
    "check_run_name",
    "choose_run_name",
    "content_digest_of",
    "digests_of",
    "list_some",
    "name_prefix",
    "read_epoch",
    "read_legible_id",
    "request_part",
    "require_unedited",
    "warm_up_name",
    "with_reasks",
]

PART_LENGTH = 48
LONGEST_NAME = 120
_ILLEGIBLE = re.compile(r"[^\w./@+-]")


def with_reasks(digest: str, reasks: int) -> str:
    """Return the hash of what is sent, from that of the first request."""
    return digest if reasks == 1 else sha256_of([digest, reasks])[:DIGEST_LENGTH]


def list_some(ids: set[str], most: int = 5) -> str:
    """Return the first few ids, and how many more there are."""
    shown = sorted(ids)[:most]
    more = f" and {len(ids) - most} more" if len(ids) > most else ""
    return ", ".join(shown) + more


def check_run_name(name: object) -> str:
    """Return the name of a run, if it can be one.

    Raises:
        LLMEvaluationError: It is no single line of 1 to 120 characters.
    """
    if not isinstance(name, str) or not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
        raise LLMEvaluationError(
            f"The name of an evaluation is one line of 1 to {LONGEST_NAME} characters; got {name!r}."
        )
    return name


async def choose_run_name(store: EvalStore, workspace_id: str, task: Task, name: str | None) -> str:
    """Return the name of the run that an evaluation makes or continues.

    Without a name it is the task's. Where the run of that name was made with the task before it was edited, a number is
    added: the edited task is another one, whose answers do not belong beside the earlier ones.

    Args:
        store: Where runs are looked up.
        workspace_id: Workspace of the run.
        task: The task.
        name: The name that was given.

    Raises:
        LLMEvaluationError: The name cannot be that of a run.
    """
    if name is not None:
        return check_run_name(name)
    for number in count(1):
        name = task.name if number == 1 else f"{task.name[: LONGEST_NAME - len(f'-{number}')]}-{number}"
        run = await store.get_run(workspace_id, name)
        if run is None or run.task_sha256 == task.task_sha256:
            break
    return check_run_name(name)


def name_prefix(run: EvalRun) -> str:
    """Return the prefix of the names of all calls of a run."""
    return f"eval:{run.id.hex}:"


def warm_up_name(run: EvalRun) -> str:
    """Return the name of the calls that only load models."""
    return f"{WARM_UP_STAGE}:{run.id.hex}"


def call_name(run: EvalRun, sample_id: str, label: str, epoch: int, digests: str) -> str:
    """Name of one sample on one route in one epoch: idempotency key and `pipeline_run_id` of its calls.

    At most 255 characters with the step added. The readable parts may be cut; the digests of content and of names keep
    it unique.
    """
    parts = [_legible(text) for text in (sample_id, label)]
    names = sha256_of([sample_id, label])[:DIGEST_LENGTH]
    return f"{name_prefix(run)}{':'.join(parts)}:{epoch}:{names}:{digests}"


def _legible(text: str) -> str:
    return _ILLEGIBLE.sub("_", text)[:PART_LENGTH]


def read_legible_id(call_name: str) -> str:
    """Return the sample's id in a name, which may be cut or have other characters."""
    return call_name.split(":")[2]


def read_epoch(call_name: str) -> int:
    """Return the epoch in a name."""
    return int(call_name.split(":")[4])


def require_unedited(results: Sequence[EvalResult], others: Sequence[EvalResult]) -> None:
    """Refuse to compare results of samples that have one id and different contents.

    Raises:
        LLMEvaluationError: There are such; the message names some.
    """
    contents = {result.sample_id: content_digest_of(result) for result in others}
    edited = {
        result.sample_id
        for result in results
        if contents.get(result.sample_id) not in (None, content_digest_of(result))
    }
    if edited:
        raise LLMEvaluationError(
            f"These samples were edited between the two runs, so that they cannot be compared: {list_some(edited)}. "
            "Run the baseline again, or give the edited samples another id."
        )


def content_digest_of(result: EvalResult | EvalOutcome) -> str:
    """Return the digest of the sample's content that a result's scores are of."""
    # Without an edit it is that of the call, whose name never changes: it is the key under which the answer is stored.
    return result.content_digest or digests_of(result.pipeline_run_id)[0]


def request_part(call_name: str) -> str:
    """Return the name of a call without the digest of the content: the part that the answer depends on."""
    names, _colon, digests = call_name.rpartition(":")
    return f"{names}:{digests[DIGEST_LENGTH:]}"


def digests_of(call_name: str) -> tuple[str, str]:
    """Return the digests in a call's name: of the sample's content, and of what was sent."""
    digests = call_name.rpartition(":")[2]
    return digests[:DIGEST_LENGTH], digests[DIGEST_LENGTH:]
