"""Names of calls in a run: idempotency keys, ids in names, and the digests that find edited samples."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmkit.canonical_json import sha256_of
from llmkit.errors import LLMEvaluationError
from llmkit.eval_ports import EvalResult, EvalRun
from llmkit.evals.tasks.variant import DIGEST_LENGTH

if TYPE_CHECKING:
    pass

__all__ = ["call_name", "check_run_name", "digests_of", "name_prefix", "require_unedited", "with_reasks"]


PART_LENGTH = 48


LONGEST_NAME = 120


_ILLEGIBLE = re.compile(r"[^\w./@+-]")


def with_reasks(digest: str, reasks: int) -> str:
    """Return the hash of what is sent, from that of the first request."""
    return digest if reasks == 1 else sha256_of([digest, reasks])[:DIGEST_LENGTH]


def _some(ids: set[str], most: int = 5) -> str:
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


def name_prefix(run: EvalRun) -> str:
    """Return the prefix of the names of all calls of a run."""
    return f"eval:{run.id.hex}:"


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


def _legible_id(call_name: str) -> str:
    return call_name.split(":")[2]


def _epoch(call_name: str) -> int:
    return int(call_name.split(":")[4])


def require_unedited(results: Sequence[EvalResult], others: Sequence[EvalResult]) -> None:
    """Refuse to compare results of samples that have one id and different contents.

    Raises:
        LLMEvaluationError: There are such; the message names some.
    """
    contents = {result.sample_id: digests_of(result.pipeline_run_id)[0] for result in others}
    edited = {
        result.sample_id
        for result in results
        if contents.get(result.sample_id) not in (None, digests_of(result.pipeline_run_id)[0])
    }
    if edited:
        raise LLMEvaluationError(
            f"These samples were edited between the two runs, so that they cannot be compared: {_some(edited)}. "
            "Run the baseline again, or give the edited samples another id."
        )


def digests_of(call_name: str) -> tuple[str, str]:
    """Digests in a call's name: of the sample's content, and of what was sent."""
    digests = call_name.rpartition(":")[2]
    return digests[:DIGEST_LENGTH], digests[DIGEST_LENGTH:]
