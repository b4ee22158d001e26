"""The local model as a `ModelServer`: one child process for all sessions of a process.

The child is the one thing in llmkit that a whole process shares: it takes 600 MB and both processors, so a second one
for the same settings would only take memory and time from the first.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from concurrent.futures import Future, wait
from dataclasses import dataclass

from llmkit.batch.loading import note_loading
from llmkit.errors import LLMError, LLMUnavailable
from llmkit.local_model.models import find_local_model
from llmkit.local_model.process import ModelProcess, ServeOrder
from llmkit.local_model.weights import ensure_weights, require_installed
from llmkit.ports import Endpoint
from llmkit.settings import LLMSettings
from llmkit.types import LLMProvider

__all__ = ["LocalModelServer", "share_server"]

EXIT_WAIT_S = 1.0


@dataclass(frozen=True, slots=True)
class _LocalModelSpec:
    """Settings that two sessions must share to use one child process."""

    model: str
    context_tokens: int
    parallel: int


class LocalModelServer:
    """Implementation of `llmkit.ports.ModelServer`. One per session; sessions with equal settings share a child.

    Safe from any thread and any event loop. In a process forked from one that uses it, it starts another child
    and leaves the other alone. A child ends when its last user closes, and in any case with the process.
    """

    def __init__(self, settings: LLMSettings) -> None:
        self._spec = _LocalModelSpec(settings.local_model, settings.local_context_tokens, settings.local_parallel)
        self._user = object()

    async def ensure_running(self) -> Endpoint:
        """Start the child when it does not run (1 to 3 s, more the first time ever), and say where it listens.

        Call it before each request: a child that has crashed is replaced, under another address and key. When it
        runs, this takes microseconds.

        Raises:
            LLMConfigurationError: The model is unknown, or a package is missing or damaged.
            LLMUnavailable: The child does not come up; the next call tries again.
        """
        outcome = _registry().join(self._spec, self._user).outcome
        result = outcome.result() if outcome.done() else await asyncio.wrap_future(outcome)
        if isinstance(result, LLMError):
            # Several callers may wait for one start, and each writes its own run into the error that it gets.
            raise type(result)(result.message, provider=LLMProvider.LOCAL, model=self._spec.model)
        return result

    async def close(self) -> None:
        """Stop using the child; it ends within a second when nothing else in this process uses it. Idempotent."""
        start = _registry().leave(self._spec, self._user)
        if start is not None:
            await start.astop()


def share_server(settings: LLMSettings) -> LocalModelServer:
    """Return a new user of this process's child for these settings; nothing starts before `ensure_running`."""
    return LocalModelServer(settings)


class _Start:
    """One child, from the wish to have it to its end.

    It is brought up in a daemon thread, because an exiting interpreter waits for every other kind.
    """

    def __init__(self, spec: _LocalModelSpec) -> None:
        self.outcome: Future[Endpoint | LLMError] = Future()
        self.outcome.set_running_or_notify_cancel()  # a caller who gives up must not take it from the others
        self._spec = spec
        self._process: ModelProcess | None = None
        self._is_stopped = False
        threading.Thread(target=self._run, name="llmkit-local-model-start", daemon=True).start()

    @property
    def is_usable(self) -> bool:
        """Whether it is coming up or running."""
        if not self.outcome.done():
            return not self._is_stopped
        return self._process is not None and self._process.is_running

    def stop(self) -> None:
        """End it at once, also while it is coming up."""
        self._is_stopped = True
        if self._process is not None:
            self._process.stop()
        wait([self.outcome], EXIT_WAIT_S)

    async def astop(self) -> None:
        """Do the same as `stop`, without holding up the event loop."""
        self._is_stopped = True
        if self._process is not None:
            await self._process.astop()

    def disown(self) -> None:
        """Leave the child to the process that this one was forked from."""
        if self._process is not None:
            self._process.disown()

    def _run(self) -> None:
        try:
            with note_loading(self._spec.model):
                result: Endpoint | LLMError = self._bring_up()
        except LLMError as error:
            result = error
        except Exception as error:  # noqa: BLE001 - a caller waits for the outcome, whatever it is
            result = LLMUnavailable(f"The local model cannot be started: {type(error).__name__}: {error}")
        self.outcome.set_result(result)

    def _bring_up(self) -> Endpoint:
        model = find_local_model(self._spec.model)
        require_installed(model)
        order = ServeOrder(model.name, str(ensure_weights(model)), self._spec.context_tokens, self._spec.parallel)
        if self._is_stopped:
            raise LLMUnavailable(f"The local model {model.name} was closed while it started.")
        self._process = ModelProcess.spawn(order)
        if self._is_stopped:  # `stop` may have come a moment too early to see the process
            self._process.stop()
        return self._process.wait_ready()


class _Registry:
    """The children of this process, and the sessions that use each."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._starts: dict[_LocalModelSpec, _Start] = {}
        self._users: dict[_LocalModelSpec, set[object]] = {}
        self._stops_at_exit = False

    def join(self, spec: _LocalModelSpec, user: object) -> _Start:
        """Return a child that is coming up or running, a new one if need be."""
        with self._lock:
            if not self._stops_at_exit:
                atexit.register(_stop_at_exit)
                self._stops_at_exit = True
            self._users.setdefault(spec, set()).add(user)
            start = self._starts.get(spec)
            if start is not None and start.is_usable:
                return start
            if start is not None:
                start.stop()  # it has failed or crashed; this only closes what is left of it
            self._starts[spec] = _Start(spec)
            return self._starts[spec]

    def leave(self, spec: _LocalModelSpec, user: object) -> _Start | None:
        """Return the child that is no longer used, for the caller to stop; None when there is none."""
        with self._lock:
            users = self._users.get(spec, set())
            if user not in users:
                return None
            users.remove(user)
            return None if users else self._starts.pop(spec, None)

    def stop_all(self) -> None:
        """End every child."""
        with self._lock:
            starts = list(self._starts.values())
            self._starts.clear()
            self._users.clear()
        for start in starts:
            start.stop()

    def disown_all(self) -> None:
        """Leave every child to its own parent. Takes no lock: the thread that held it was not forked along."""
        for start in self._starts.values():
            start.disown()


# By process id: a forked process finds nothing under its own, so it neither waits for a lock that another thread held
# when it was forked, nor uses or stops a child that is not its own.
_registries: dict[int, _Registry] = {}


def _registry() -> _Registry:
    return _registries.setdefault(os.getpid(), _Registry())


def _stop_at_exit() -> None:
    for pid, registry in list(_registries.items()):
        if pid == os.getpid():
            registry.stop_all()
        else:
            registry.disown_all()
