"""The part that both stand-in servers share: an HTTP server on loopback in its own thread."""

import asyncio
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from llmkit.testing.http_answers import HttpAnswer
from llmkit.testing.http_faults import get_content, make_transport_answer, send, send_whole, sit_out_delays
from llmkit.testing.replies import Fault, FaultKind, Reply
from llmkit.testing.reply_script import Replies, Script
from llmkit.testing.request_log import RecordedRequest, RequestLog, Usage
from llmkit.testing.server_load import Load, Overloaded, Slots

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["StandInServer", "get_refused_url"]

_BACKLOG = 4096
_MAX_BODY_BYTES = 256 * 1024**2
_JOIN_TIMEOUT_S = 10.0
# Of the event loop, from accepting a connection to the notification of its protocol: three, and one to be sure.
_TURNS_TO_KNOW_A_CONNECTION = 4


def get_refused_url() -> str:
    """Return the URL of a loopback port without a listener: connecting to it is refused at once.

    The port is a reserved one, so that no server started on port 0 can come to sit there.

    Raises:
        RuntimeError: Every port up to 1023 has a listener.
    """
    for port in range(1, 1024):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return f"http://127.0.0.1:{port}"
    raise RuntimeError("something listens on every reserved port")


async def _stop_accepting(listener: asyncio.Server) -> None:
    """Stop listening and wait for accepted connections: asyncio does not close those of a closed listener."""
    loop = asyncio.get_running_loop()
    for door in listener.sockets:
        with suppress(NotImplementedError):  # loops of Windows accept in another way
            loop.remove_reader(door.fileno())
    for _ in range(_TURNS_TO_KNOW_A_CONNECTION):
        await asyncio.sleep(0)
    listener.close()


class StandInServer(ABC):
    """A server that answers what it was scripted to, over real HTTP on 127.0.0.1.

    Use it as a context manager, or call `start` and `stop`. It runs in a daemon thread with an event loop of its
    own, so tests, notebooks and event loops can all talk to it. Every method may be called from any thread.

    Args:
        replies: See `script`.
        load: How many requests it serves at once, how slowly, and when it is overloaded.
        keep_requests: How many requests `requests` keeps, the newest; None for all. Counters and `usage` cover all
            anyway.
        port: 0 for a free one. A server started again after `stop` takes the port that it had.
    """

    unsupported_faults: ClassVar[frozenset[FaultKind]] = frozenset()

    def __init__(
        self,
        replies: Replies,
        *,
        load: Load,
        keep_requests: int | None,
        port: int,
    ) -> None:
        self._script = Script(replies, self.unsupported_faults)
        self._endpoint_scripts: dict[str, Script] = {}
        self._slots = Slots(load)
        self._log = RequestLog(keep_requests)
        self._port = port
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop_asked: asyncio.Event | None = None

    # -- life --------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start to listen and return the server; does nothing if it runs.

        Raises:
            OSError: The port is taken.
        """
        if self._thread is None:
            listening: Future[int] = Future()
            self._thread = threading.Thread(target=self._run, args=(listening,), name=type(self).__name__, daemon=True)
            self._thread.start()
            try:
                self._port = listening.result()
            except BaseException:
                self._thread.join()
                self._thread = None
                raise
        return self

    def stop(self) -> None:
        """Close every connection, end every request under way and wait for the thread, if there is one."""
        thread, self._thread = self._thread, None
        if thread is None or self._loop is None or self._stop_asked is None:
            return
        self._loop.call_soon_threadsafe(self._stop_asked.set)
        thread.join(_JOIN_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The base URL, without a slash at its end; kept after `stop`, when connecting is refused.

        Raises:
            RuntimeError: The server was never started.
        """
        if not self._port:
            raise RuntimeError(
                f"{type(self).__name__} has no address before it is started: use `with`, or call start()"
            )
        return f"http://127.0.0.1:{self._port}"

    # -- what it answers ---------------------------------------------------------------------------

    def script(self, replies: Replies, *, endpoint: str | None = None) -> None:
        """Replace what is answered from now on.

        Args:
            replies: One answer, several in order of arrival (the last repeats), or a function of the request. A
                request that the server refuses by itself (unknown model, wrong key) uses none up.
            endpoint: An exact path such as `/api/show` to script instead of the calls of the model. There a `Reply`
                stands for the normal answer.

        Raises:
            ValueError: No reply at all, or a fault that this wire cannot express.
        """
        script = Script(replies, self.unsupported_faults)
        if endpoint is None:
            self._script = script
        else:
            self._endpoint_scripts[endpoint] = script

    @property
    def load(self) -> Load:
        """How the server behaves under load; may be replaced at any time."""
        return self._slots.load

    @load.setter
    def load(self, load: Load) -> None:
        self._slots.load = load

    # -- what it remembers -------------------------------------------------------------------------

    @property
    def requests(self) -> tuple[RecordedRequest, ...]:
        """The requests that came in, oldest first, as many as are kept."""
        return self._log.requests

    @property
    def calls(self) -> tuple[RecordedRequest, ...]:
        """Those of `requests` that call the model."""
        return tuple(request for request in self._log.requests if request.is_call)

    @property
    def request_count(self) -> int:
        """All requests so far, kept or not."""
        return self._log.request_count

    @property
    def call_count(self) -> int:
        """All calls of the model so far, kept or not."""
        return self._log.call_count

    @property
    def usage(self) -> Usage:
        """Billed tokens: the sums of all counts in answers that were sent completely."""
        return self._log.usage

    @property
    def in_flight(self) -> int:
        """Requests for the model received and not yet answered, those waiting for a slot included; look-ups not."""
        return self._log.in_flight

    @property
    def max_in_flight(self) -> int:
        """The highest that `in_flight` has been."""
        return self._log.max_in_flight

    def clear(self) -> None:
        """Forget requests, counters, usage and the highest number in flight. Scripts stay where they are."""
        self._log.clear()

    def wait_until_idle(self, timeout_s: float = 5.0) -> bool:
        """Wait until nothing is in flight; False when `timeout_s` seconds were not enough."""
        return self._log.wait_until_idle(timeout_s)

    def wait_until_in_flight(self, count: int = 1, timeout_s: float = 5.0) -> bool:
        """Wait until at least `count` requests are in flight; False when `timeout_s` seconds were not enough."""
        return self._log.wait_until_in_flight(count, timeout_s)

    # -- what a wire defines -----------------------------------------------------------------------

    @abstractmethod
    def _is_call(self, method: str, path: str) -> bool:
        """Return whether the request calls the model, and so takes a scripted answer and a slot."""

    @abstractmethod
    def _lookup(self, request: RecordedRequest) -> HttpAnswer:
        """Return the answer to anything that is not a call."""

    @abstractmethod
    def _refuse(self, request: RecordedRequest, body: Any) -> HttpAnswer | None:
        """Return the error for a call that this server would not accept whatever the script says, or None."""

    @abstractmethod
    def _render(self, request: RecordedRequest, body: Any, reply: Reply) -> HttpAnswer:
        """Return the model's answer in the form of the wire."""

    @abstractmethod
    def _render_fault(self, request: RecordedRequest, fault: Fault) -> HttpAnswer:
        """Return the answer for a fault that is more than one of the transport."""

    @abstractmethod
    def _make_error(self, status: int, message: str) -> HttpAnswer:
        """Return an error body of the wire."""

    def _make_stream_error(self, fault: Fault, answer: HttpAnswer) -> HttpAnswer:
        """Return the error body of the wire, and as an event of the stream where `answer` is one."""
        error = self._make_error(fault.status_code, fault.message or "stand-in error in the middle of an answer")
        if not answer.streamed:
            return error
        is_sse = answer.content_type.startswith("text/event-stream")
        return HttpAnswer([b"data: " + error.body + b"\n\n" if is_sse else error.body + b"\n"])

    # -- the thread --------------------------------------------------------------------------------

    def _run(self, listening: "Future[int]") -> None:
        try:
            asyncio.run(self._listen(listening))
        except BaseException as error:
            if listening.done():
                raise
            listening.set_exception(error)

    async def _listen(self, listening: "Future[int]") -> None:
        from aiohttp import web

        loop = self._loop = asyncio.get_running_loop()
        self._stop_asked = asyncio.Event()

        def make_request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
            return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=_MAX_BODY_BYTES)

        http = web.Server(self._handle, request_factory=make_request, handler_cancellation=True, access_log=None)
        listener = await loop.create_server(http, "127.0.0.1", self._port, backlog=_BACKLOG)
        listening.set_result(listener.sockets[0].getsockname()[1])
        await self._stop_asked.wait()
        await _stop_accepting(listener)
        for connection in http.connections:
            if connection.transport is not None:
                connection.transport.abort()  # unlike close(), does not wait for a client that reads slowly
        await asyncio.sleep(0)

    async def _handle(self, http: "web.BaseRequest") -> "web.StreamResponse":
        path, body = http.path, await http.read()
        is_call = self._is_call(http.method, path)
        request = RecordedRequest(http.method, path, http.query, http.headers, body, time.monotonic(), is_call)
        self._log.open(request)
        try:
            return await (self._serve_call(http, request) if is_call else self._serve_lookup(http, request))
        except (asyncio.CancelledError, ConnectionError) as error:
            stopping = self._stop_asked is not None and self._stop_asked.is_set()
            self._log.close(request, "stopped" if stopping else "client_left")
            if isinstance(error, ConnectionError):
                # A client that left while it was written to is no error of the server's, which aiohttp would log.
                raise asyncio.CancelledError from error
            raise

    async def _serve_lookup(self, http: "web.BaseRequest", request: RecordedRequest) -> "web.StreamResponse":
        script = self._endpoint_scripts.get(request.path)
        planned = Reply() if script is None else script.next(request)
        return await self._perform(http, request, planned, lambda _: self._lookup(request))

    async def _serve_call(self, http: "web.BaseRequest", request: RecordedRequest) -> "web.StreamResponse":
        book = partial(self._log.close, request)
        try:
            body = request.json
        except ValueError:
            return send_whole(self._make_error(400, "the request body is not JSON"), book)
        if not isinstance(body, dict):
            return send_whole(self._make_error(400, "the request body is not a JSON object"), book)
        try:
            refusal = self._refuse(request, body)
        except (AttributeError, TypeError, ValueError) as error:
            return send_whole(self._make_error(400, f"a field has the wrong type: {error}"), book)
        try:
            if refusal is not None:
                return send_whole(refusal, book)
            planned = (self._endpoint_scripts.get(request.path) or self._script).next(request)
        except Exception as error:  # noqa: BLE001 - whatever a test's own function raises is shown to its client
            return send_whole(self._make_error(500, f"the script raised {error!r}"), book)
        try:
            async with self._slots.slot():
                return await self._perform(http, request, planned, partial(self._render, request, body))
        except Overloaded as overload:
            return send_whole(self._render_fault(request, overload.fault), book)

    async def _perform(
        self,
        http: "web.BaseRequest",
        request: RecordedRequest,
        planned: Reply | Fault,
        render: Callable[[Reply], HttpAnswer],
    ) -> "web.StreamResponse":
        planned = await sit_out_delays(planned)
        content = get_content(planned)
        try:
            if isinstance(content, Reply):
                answer = render(content)
            else:
                answer = make_transport_answer(content) or self._render_fault(request, content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            answer = self._make_error(500, f"the stand-in cannot answer this request: {error!r}")
        return await send(http, answer, planned, partial(self._log.close, request), self._make_stream_error)
