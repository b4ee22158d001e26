"""The last few answers of a map or an evaluation, failures first, as they are shown while it runs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from llmkit.display.terminal_text import escape_controls
from llmkit.redaction import preview

__all__ = ["SHOWN_ANSWERS", "AnswerText", "LatestAnswer", "LatestAnswers", "write_answer"]

SHOWN_ANSWERS = 5
# Failures stay until newer ones replace them, so some places are left to what else comes in.
SHOWN_FAILURES = 3
LONGEST_TEXT = 200


@dataclass(frozen=True, slots=True, eq=False)
class LatestAnswer:
    """An answer that has just come, as it is: what is shown of it is redacted first.

    Attributes:
        label: Name of the row or sample.
        input: Text or object of the row or sample.
        output: The answer: a text, or a value that can be written as one; the error message of a failed one.
        failed: Whether there is no valid answer.
        facts: What else is known, such as route and scores.
    """

    label: str
    input: Any
    output: Any
    failed: bool = False
    facts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AnswerText:
    """An answer as single lines of text: redacted, cut, and without control characters."""

    status: str
    label: str
    input: str
    output: str


class LatestAnswers:
    """Collects answers in one thread while another one shows them. It keeps only as many as can be shown."""

    def __init__(self) -> None:
        # Tuples that are replaced as a whole: the other thread never sees one change.
        self._failed: tuple[LatestAnswer, ...] = ()
        self._others: tuple[LatestAnswer, ...] = ()

    def note(self, answer: LatestAnswer) -> None:
        """Add the newest answer."""
        if answer.failed:
            self._failed = (answer, *self._failed[: SHOWN_ANSWERS - 1])
        else:
            self._others = (answer, *self._others[: SHOWN_ANSWERS - 1])

    def list(self) -> tuple[LatestAnswer, ...]:
        """Return what to show: failures first, and the newest of each kind first."""
        failed, others = self._failed, self._others
        failed = failed[: max(SHOWN_FAILURES, SHOWN_ANSWERS - len(others))]
        return failed + others[: SHOWN_ANSWERS - len(failed)]


def write_answer(answer: LatestAnswer, secrets: Iterable[str] = ()) -> AnswerText:
    """Return an answer as it may be shown on a screen, on one line.

    Args:
        answer: The answer.
        secrets: As for `redact`.
    """
    secrets = tuple(secrets)
    label, asked, output, *facts = (
        # Redacted before spaces are joined: some secrets are recognised by their lines. Half of a surrogate pair could
        # neither be printed nor sent to a notebook.
        escape_controls(" ".join(preview(_write_text(part), LONGEST_TEXT, secrets).split()))
        .encode("utf-8", "replace")
        .decode()
        for part in (answer.label, answer.input, answer.output, *answer.facts)
    )
    # Scores come before the name: a narrow line cuts its end, and names that are made of the content say nothing.
    return AnswerText("failed" if answer.failed else "ok", " ".join([*facts, label]), asked, output)


def _write_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
    except Exception:  # noqa: BLE001 - a value of the user's type may raise anything
        return type(value).__name__
