"""The order in which a stand-in server gives its answers."""

import threading
from collections.abc import Callable, Sequence
from typing import TypeAlias

from llmkit.testing.replies import Fault, FaultKind, Reply
from llmkit.testing.request_log import RecordedRequest

__all__ = ["Replies", "Script", "Scripted"]

Scripted: TypeAlias = str | Reply | Fault
"""One scripted answer; a bare string is `Reply(text)`."""

Replies: TypeAlias = Scripted | Sequence[Scripted] | Callable[[RecordedRequest], Scripted]
"""One answer for every request, several in order of which the last repeats, or a function of the request."""


class Script:
    """Hands out scripted answers, from any thread.

    Args:
        replies: What to answer. A function is called on the server's thread and must not block.
        unsupported: Kinds of fault that the server's wire cannot express.

    Raises:
        ValueError: An empty sequence, or a fault of an unsupported kind.
    """

    def __init__(self, replies: Replies, unsupported: frozenset[FaultKind] = frozenset()) -> None:
        self._unsupported = unsupported
        self._lock = threading.Lock()
        self._position = 0
        self._function: Callable[[RecordedRequest], Scripted] | None = None
        self._answers: tuple[Reply | Fault, ...] = ()
        if callable(replies):
            self._function = replies
        else:
            several = [replies] if isinstance(replies, str | Reply | Fault) else replies
            self._answers = tuple(self._check_reply(answer) for answer in several)
            if not self._answers:
                raise ValueError("a script needs at least one reply")

    def next(self, request: RecordedRequest) -> Reply | Fault:
        """Return the answer for `request`, which is used up unless it is the last.

        Raises:
            ValueError: The function answered with a fault of an unsupported kind. Whatever the function raises comes
                through too.
        """
        if self._function is not None:
            return self._check_reply(self._function(request))
        with self._lock:
            answer = self._answers[min(self._position, len(self._answers) - 1)]
            self._position += 1
        return answer

    def _check_reply(self, scripted: Scripted) -> Reply | Fault:
        answer = Reply(scripted) if isinstance(scripted, str) else scripted
        inner = answer
        while isinstance(inner, Fault):
            if inner.kind in self._unsupported:
                raise ValueError(f"this server's wire has no {inner.kind.value!r}")
            inner = inner.then
        return answer
