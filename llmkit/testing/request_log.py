"""Requests that a stand-in server received, and the tokens that it billed."""

import json
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

__all__ = ["Outcome", "RecordedRequest", "RequestLog", "Usage"]

Outcome: TypeAlias = Literal["pending", "answered", "broken", "client_left", "stopped"]
"""`broken` is a reset or a truncation that was scripted, `stopped` a request that the end of the server cut off."""


@dataclass(slots=True, eq=False)
class RecordedRequest:
    """One request as it came in. Its `outcome` and `ended_at_s` change when the request ends; the rest is fixed.

    Attributes:
        method: `GET`, `POST`, ...
        path: Without the query string.
        query: The query parameters; the last of several of one name.
        headers: Looked up without regard to case. May hold a key, hence not in the `repr`.
        body: The raw bytes.
        received_at_s: Seconds on the clock of `time.monotonic`.
        is_call: Whether it calls the model; false for listings and details.
        outcome: How it ended.
        ended_at_s: When it ended, on the same clock: when a client that left was noticed, for one; None until then.
    """

    method: str
    path: str
    query: Mapping[str, str] = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    received_at_s: float
    is_call: bool
    outcome: Outcome = "pending"
    ended_at_s: float | None = None

    @property
    def json(self) -> Any:
        """The body as JSON, parsed on each access; raises `json.JSONDecodeError` when it is none."""
        return json.loads(self.body)

    @property
    def completed(self) -> bool:
        """Whether the whole scripted answer was handed to the socket."""
        return self.outcome == "answered"

    @property
    def client_disconnected(self) -> bool:
        """Whether the client went away before the answer was complete."""
        return self.outcome == "client_left"


@dataclass(frozen=True, slots=True)
class Usage:
    """Sums over all answers that reported counts, in tokens; `answers` is how many those were.

    `input_tokens` includes `cached_tokens`, and `output_tokens` includes `reasoning_tokens`.
    """

    answers: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.answers + other.answers,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )


class RequestLog:
    """Counts requests and tokens, safely from any thread.

    An answer is booked just before its last bytes leave, so that a client which has the answer finds it booked.

    Args:
        keep_requests: How many requests are kept, the newest; None for all.
    """

    def __init__(self, keep_requests: int | None) -> None:
        self._changed = threading.Condition()
        self._requests: deque[RecordedRequest] = deque(maxlen=keep_requests)
        self._usage = Usage()
        self._request_count = 0
        self._call_count = 0
        self._in_flight = 0
        self._max_in_flight = 0

    def open(self, request: RecordedRequest) -> None:
        """Book a request that came in."""
        with self._changed:
            self._requests.append(request)
            self._request_count += 1
            self._call_count += request.is_call
            self._in_flight += request.is_call
            self._max_in_flight = max(self._max_in_flight, self._in_flight)
            self._changed.notify_all()

    def close(self, request: RecordedRequest, outcome: Outcome, usage: Usage | None = None) -> None:
        """Book the end of a request; only the first call for a request counts."""
        with self._changed:
            if request.outcome != "pending":
                return
            request.outcome, request.ended_at_s = outcome, time.monotonic()
            self._in_flight -= request.is_call
            if usage is not None:
                self._usage += usage
            self._changed.notify_all()

    def clear(self) -> None:
        """Forget requests, sums and the highest number in flight; requests under way go on."""
        with self._changed:
            self._requests.clear()
            self._usage = Usage()
            self._request_count = self._call_count = 0
            self._max_in_flight = self._in_flight

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Wait until nothing is in flight; False when `timeout_s` seconds were not enough."""
        with self._changed:
            return self._changed.wait_for(lambda: self._in_flight == 0, timeout_s)

    def wait_until_in_flight(self, count: int, timeout_s: float) -> bool:
        """Wait until at least `count` requests are in flight; False when `timeout_s` seconds were not enough."""
        with self._changed:
            return self._changed.wait_for(lambda: self._in_flight >= count, timeout_s)

    @property
    def requests(self) -> tuple[RecordedRequest, ...]:
        """The requests kept, oldest first."""
        with self._changed:
            return tuple(self._requests)

    @property
    def usage(self) -> Usage:
        """The sums so far."""
        with self._changed:
            return replace(self._usage)

    @property
    def request_count(self) -> int:
        """All requests so far, kept or not."""
        return self._request_count

    @property
    def call_count(self) -> int:
        """All calls of the model so far, kept or not."""
        return self._call_count

    @property
    def in_flight(self) -> int:
        """Requests for the model received and not yet answered, waiting ones included."""
        return self._in_flight

    @property
    def max_in_flight(self) -> int:
        """The highest that `in_flight` has been."""
        return self._max_in_flight
