"""One stand-in for every harness: Ollama's own wire and its OpenAI-compatible one, the same answer after a wait.

    python benchmarks/peers/stand_in.py LATENCY_S

Prints its address, and serves until its standard input closes. `GET /asked` says how many answers it has given, and
sets the count back.
"""

from __future__ import annotations

import asyncio
import json
import sys

from aiohttp import web

MODEL = "stand-in"
ANSWER = '{"label": "positive"}'
INPUT_TOKENS, OUTPUT_TOKENS = 20, 6
DETAILS = {"family": "llama", "families": ["llama"], "parameter_size": "1B", "quantization_level": "Q4_K_M"}
MODEL_INFO = {"general.architecture": "llama", "llama.context_length": 8192}


class StandIn:
    """The handlers, and how often the model was asked."""

    def __init__(self, latency_s: float) -> None:
        self.latency_s = latency_s
        self.asked = 0

    async def chat(self, request: web.Request) -> web.Response:
        """Answer `POST /api/chat`, with or without streaming."""
        body = await self._answered(request)
        line = {
            "model": MODEL,
            "created_at": "2026-01-01T00:00:00Z",
            "message": {"role": "assistant", "content": ANSWER},
            "done": True,
            "done_reason": "stop",
            "prompt_eval_count": INPUT_TOKENS,
            "eval_count": OUTPUT_TOKENS,
        }
        kind = "application/json" if body.get("stream") is False else "application/x-ndjson"
        return web.Response(text=json.dumps(line) + "\n", content_type=kind)

    async def completions(self, request: web.Request) -> web.Response:
        """Answer `POST /v1/chat/completions`, without streaming, which no harness here uses."""
        await self._answered(request)
        usage = {
            "prompt_tokens": INPUT_TOKENS,
            "completion_tokens": OUTPUT_TOKENS,
            "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
        }
        message = {"role": "assistant", "content": ANSWER}
        return web.json_response(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1_767_225_600,
                "model": MODEL,
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": usage,
            }
        )

    async def _answered(self, request: web.Request) -> dict[str, object]:
        body: dict[str, object] = json.loads(await request.read())
        self.asked += 1
        await asyncio.sleep(self.latency_s)
        return body

    async def count(self, _: web.Request) -> web.Response:
        """Answer `GET /asked` with the count so far, and reset it."""
        asked, self.asked = self.asked, 0
        return web.json_response(asked)


async def show(_: web.Request) -> web.Response:
    return web.json_response({"details": DETAILS, "model_info": MODEL_INFO, "capabilities": ["completion"]})


async def tags(_: web.Request) -> web.Response:
    return web.json_response({"models": [{"name": f"{MODEL}:latest", "model": f"{MODEL}:latest", "digest": "0" * 64}]})


async def version(_: web.Request) -> web.Response:
    return web.json_response({"version": "0.6.5"})


def application(stand_in: StandIn) -> web.Application:
    """Return the models on offer."""
    app = web.Application()
    app.router.add_post("/api/chat", stand_in.chat)
    app.router.add_post("/v1/chat/completions", stand_in.completions)
    app.router.add_get("/asked", stand_in.count)
    app.router.add_post("/api/show", show)
    app.router.add_get("/api/tags", tags)
    app.router.add_get("/api/version", version)
    return app


async def serve(latency_s: float) -> None:
    """Serve until standard input closes."""
    runner = web.AppRunner(application(StandIn(latency_s)), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=512)
    await site.start()
    host, port = runner.addresses[0][:2]
    print(f"http://{host}:{port}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1])))
