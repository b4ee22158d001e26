"""A client that a test holds at the moment when a request leaves."""

from __future__ import annotations

import asyncio

from llmkit.ports import AnswerSink, AttemptLog, BeforeSend, ClientReply, NotSent, allow_sending
from llmkit.testing.scripted_client import ScriptedClient
from llmkit.types import LLMRequest, Route


class GatedClient(ScriptedClient):
    """Every call waits for `gate`, which is shut at first; `arrived` says that one is there."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.arrived = asyncio.Event()
        self.gate = asyncio.Event()

    async def call(
        self,
        route: Route,
        request: LLMRequest,
        log: AttemptLog,
        before_send: BeforeSend = allow_sending,
        *,
        sink: AnswerSink | None = None,
    ) -> ClientReply | NotSent:
        if (not_sent := await before_send()) is not None:
            return not_sent
        self.arrived.set()
        await self.gate.wait()
        return await super().call(route, request, log, before_send, sink=sink)
