"""Health of a route: whether it is still worth calling."""

from __future__ import annotations

from dataclasses import dataclass

from llmkit.errors import (
    LLMAuthenticationError,
    LLMConfigurationError,
    LLMError,
    LLMModelNotFound,
    LLMNoRoute,
    LLMPermissionDenied,
    LLMQuotaExhausted,
    LLMUnavailable,
    LLMUnsupported,
)

__all__ = ["FAILURES_BEFORE_STOP", "LONGEST_SILENCE_S", "SHORTEST_REST_S", "TRIES_OF_A_SAMPLE", "RouteHealth"]

FAILURES_BEFORE_STOP = 3
# A server that breaks off at the same sample again and again does so because of it.
TRIES_OF_A_SAMPLE = 4
# Routes that rest are waited for as long as this without an answer of any.
LONGEST_SILENCE_S = 90.0
LONGEST_REST_S = 60.0
# Shortest rest that counts as one.
SHORTEST_REST_S = 1.0
# When an error does not say how long the route is left alone.
USUAL_REST_S = 5.0

# A route that fails so will fail so again on the next sample.
HOPELESS = (
    LLMAuthenticationError,
    LLMPermissionDenied,
    LLMConfigurationError,
    LLMModelNotFound,
    LLMQuotaExhausted,
    LLMUnsupported,
    LLMNoRoute,
)


# A route is called until it rests or is stopped. It rests after an error that says that it is left alone, or that a
# server that has answered before is gone: its samples are postponed, and one call after the rest decides. It is
# stopped, for this call of `evaluate` or `map`, after three hopeless failures in a row, after rests without an answer,
# and at once if it never answered: most often such a server was not started, and each sample would wait for its
# timeout.
@dataclass(slots=True)
class RouteHealth:
    """Outcomes of the calls of one variant so far.

    Attributes:
        answers: How many got an answer.
        failures: How many failed.
        in_a_row: Hopeless failures since the last other outcome.
        resting_after: The error that said that the route is left alone for a while.
        stopped_by: The error after which the route is not called any more.
    """

    answers: int = 0
    failures: int = 0
    in_a_row: int = 0
    resting_after: LLMError | None = None
    stopped_by: LLMError | None = None

    def note_answer(self) -> None:
        """Note an answer."""
        self.answers += 1
        self.in_a_row = 0

    def note_failure(self, error: Exception) -> None:
        """Note a failure, and stop after several hopeless ones in a row."""
        self.failures += 1
        self.in_a_row = self.in_a_row + 1 if isinstance(error, HOPELESS) else 0
        if self.in_a_row >= FAILURES_BEFORE_STOP and isinstance(error, LLMError):
            self.stopped_by = self.stopped_by or error

    def is_left_alone(self, error: Exception) -> bool:
        """Return whether nothing was sent, because the route failed too often just before.

        Then it rests; a route that has failed and not answered once is stopped instead, so that no caller waits for a
        server that is not there. One that failed before this began may be back, and gets its rest.
        """
        # Its subclasses tell of a request that was sent, whether or not they know their attempts.
        if type(error) is not LLMUnavailable or error.attempts:
            return False
        self.resting_after = error
        if self.failures and not self.answers:
            self.give_up()
        return True

    def has_lost_contact(self, error: Exception) -> bool:
        """Return whether a server that has answered before broke off or cannot be reached: it may be back in a moment.

        Then the route rests. An error that the server itself sent is no such thing: it is there.
        """
        if type(error) is not LLMUnavailable or not self.answers:
            return False
        if not error.attempts or error.attempts[-1].status_code is not None:
            return False
        self.resting_after = error
        return True

    def rest(self) -> float:
        """End the rest; the seconds that it should have taken, 0 for a route that did not rest."""
        error, self.resting_after = self.resting_after, None
        if error is None:
            return 0.0
        return min(LONGEST_REST_S, USUAL_REST_S if error.retry_after_s is None else error.retry_after_s)

    def give_up(self) -> None:
        """Stop after a pause without an answer."""
        self.stopped_by = self.stopped_by or self.resting_after
