"""The cost of a streamed answer through llmkit, against a bare aiohttp reader and LiteLLM's own stream.

    python benchmarks/stream.py [--chunks N] [--rounds N] [--streams N] [--kinds KIND ...]

A server in a process of its own speaks OpenAI's, Ollama's and Gemini's streams. It sends all chunks as fast as it can
(`burst`), each 2 ms after the last, or each 25 ms after the last, so that the bare reader wakes up for every chunk.

CPU is `process_time` of the reading process: all threads, and the system's part too. Contestants take turns within a
round; figures are medians of the rounds' ratios. They are the bare reader, which takes what has arrived, splits it into
events, reads the JSON and joins the texts, but keeps no counts; llmkit's client; `Session.stream` and
`Session.astream` (the latter in the reader's own event loop, another than the session's), which also record the call in
SQLite; and LiteLLM's stream.

Another load on the machine lengthens the time to the first text more than anything here: compare the best of each, too.
Memory is that of 200 streams at once, after a quarter of their chunks and at their end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import re
import statistics
import tempfile
import time
from pathlib import Path

import aiohttp

import llmkit
from llmkit.client_litellm import LiteLLMClient
from llmkit.ports import AnswerSink, AttemptLog
from llmkit.settings import load_settings, prepare_litellm_environment
from llmkit.types import LLMRequest, Route

ROUTES = {"openai": "openai/gpt-4o-mini", "ollama": "ollama/llama3.2", "gemini": "gemini/gemini-2.5-flash"}
PATHS = {
    "openai": "/v1/chat/completions",
    "ollama": "/api/chat",
    "gemini": "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse",
}
CONTESTANTS = ("bare", "client", "stream", "astream", "litellm")
CPU_OF_BARE, CPU_OF_LITELLM, FIRST_CHUNK_MS = 2.0, 0.2, 2.0
# Faster than any model, so that pieces are gathered; and slower than that, as most models write.
PACE_S, SLOW_PACE_S = 0.002, 0.025
WANTED = re.compile(r"\[(\d+), ([\d.]+)\]")
AT = "2026-01-01T00:00:00Z"


def make_text(at) -> str:
    # LiteLLM breaks off an answer that repeats itself.
    return f" {at % 10_000:04}"


def frame_event(fields) -> bytes:
    return f"data: {json.dumps(fields)}\n\n".encode()


def make_openai_events(chunks):
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-mini"}

    def make(delta, end=None, **more):
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": end}
        return frame_event({**head, "system_fingerprint": "fp", "choices": [choice], **more})

    counts = {"prompt_tokens": 5, "completion_tokens": chunks, "total_tokens": chunks + 5}
    texts = [make({"content": make_text(at)}, usage=None) for at in range(chunks)]
    ending = [make({}, "stop"), frame_event({**head, "choices": [], "usage": counts}), b"data: [DONE]\n\n"]
    return [make({"role": "assistant", "content": ""}), *texts, *ending]


def make_ollama_events(chunks):
    def make(text, **more):
        message = {"role": "assistant", "content": text}
        fields = {"model": "llama3.2", "created_at": AT, "message": message, "done": False, **more}
        return json.dumps(fields).encode() + b"\n"

    counts = {"prompt_eval_count": 5, "eval_count": chunks, "total_duration": 1, "eval_duration": 1}
    return [*map(make, map(make_text, range(chunks))), make("", done=True, done_reason="stop", **counts)]


def make_gemini_events(chunks):
    def make(at):
        content = {"parts": [{"text": make_text(at)}], "role": "model"}
        end = {"finishReason": "STOP"} if at == chunks - 1 else {}
        counts = {"promptTokenCount": 5, "candidatesTokenCount": at + 1, "totalTokenCount": at + 6}
        candidate = {"content": content, "index": 0, **end}
        more = {"modelVersion": "gemini-2.5-flash", "responseId": "r"}
        return frame_event({"candidates": [candidate], "usageMetadata": counts, **more})

    return [make(at) for at in range(chunks)]


EVENTS = {"openai": make_openai_events, "ollama": make_ollama_events, "gemini": make_gemini_events}


def read_openai_text(event):
    choices = event["choices"]
    return choices[0]["delta"].get("content") if choices else None


def read_ollama_text(event):
    return event["message"]["content"]


def read_gemini_text(event):
    return event["candidates"][0]["content"]["parts"][0]["text"]


READ_TEXT = {"openai": read_openai_text, "ollama": read_ollama_text, "gemini": read_gemini_text}


async def serve(address) -> None:
    known = {}

    async def answer_one(reader, writer) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = re.search(r"content-length: (\d+)", head)
        body = (await reader.readexactly(int(length[1]))).decode() if length else ""
        wanted = WANTED.search(body)
        path = head.split(" ")[1]
        if wanted is None:  # a question about the model, say
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}")
            return
        kind = "ollama" if path == "/api/chat" else "openai" if path.endswith("completions") else "gemini"
        content_type = b"application/x-ndjson" if kind == "ollama" else b"text/event-stream"
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: " + content_type + b"\r\n\r\n")
        chunks, pace_s = int(wanted[1]), float(wanted[2])
        if (kind, chunks) not in known:
            known[kind, chunks] = EVENTS[kind](chunks)
        for event in known[kind, chunks]:
            writer.write(b"%x\r\n%s\r\n" % (len(event), event))
            if pace_s:
                await asyncio.sleep(pace_s)
            else:
                await writer.drain()
        writer.write(b"0\r\n\r\n")

    async def answer(reader, writer) -> None:
        try:
            while True:
                await answer_one(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    address.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def run_server(address) -> None:
    asyncio.run(serve(address))


class Readers:
    """The contestants: each reads one answer of N chunks, and returns when its first text came, in ms."""

    def __init__(self, runner, port: int, folder: str) -> None:
        self.run = runner.run
        self.base = f"http://127.0.0.1:{port}"
        settings = {
            "openai_api_key": "key",
            "gemini_api_key": "key",
            "openai_api_base": f"{self.base}/v1",
            "gemini_api_base": f"{self.base}/v1beta",
            "ollama_api_base": self.base,
            "adaptive_concurrency": False,
            "concurrency_limit": 1000,
            "stream_chunk_timeout_s": 60,
        }
        self.own = LiteLLMClient(load_settings(**settings))
        self.session = llmkit.Session(
            "bench", cache_enabled=False, database_url=f"sqlite:///{folder}/runs.db", **settings
        )
        self.run(self.open())

    async def open(self) -> None:
        """Open the bare reader's session, and import what the client needs."""
        self.http = aiohttp.ClientSession()
        await self.own.preload()

    def read(self, name, kind, chunks, pace_s) -> float:
        """Let one contestant read."""
        if name == "stream":
            return self.stream(kind, chunks, pace_s)
        return self.run(getattr(self, name)(kind, chunks, pace_s))

    async def bare(self, kind, chunks, pace_s) -> float:
        """Read by aiohttp alone."""
        began_s, first_ms, texts, tail = time.perf_counter(), 0.0, [], b""
        message = {"role": "user", "content": json.dumps([chunks, pace_s])}
        body = {"model": "gpt-4o-mini", "messages": [message], "stream": True}
        end, start, read_text = (b"\n", 0, READ_TEXT[kind]) if kind == "ollama" else (b"\n\n", 6, READ_TEXT[kind])
        async with self.http.post(f"{self.base}{PATHS[kind]}", json=body) as answer:
            async for read in answer.content.iter_any():
                *events, tail = (tail + read).split(end)
                for event in events:
                    if event == b"data: [DONE]":
                        continue
                    text = read_text(json.loads(event[start:]))
                    if text:
                        first_ms = first_ms or (time.perf_counter() - began_s) * 1000
                        texts.append(text)
        assert len("".join(texts)) == 5 * chunks
        return first_ms

    async def client(self, kind, chunks, pace_s) -> float:
        """Read through the client."""
        began_s, first_ms = time.perf_counter(), 0.0

        async def take(_pieces) -> None:
            nonlocal first_ms
            first_ms = first_ms or (time.perf_counter() - began_s) * 1000

        request = LLMRequest(messages=json.dumps([chunks, pace_s]), timeout_s=600)
        reply = await self.own.call(Route.parse(ROUTES[kind]), request, AttemptLog(), sink=AnswerSink(take))
        assert (len(reply.text), reply.usage.output_tokens) == (5 * chunks, chunks)
        return first_ms

    def stream(self, kind, chunks, pace_s) -> float:
        """Read by `Session.stream`, in a thread without a running loop."""
        began_s, first_ms, texts = time.perf_counter(), 0.0, []
        for text in self.session.stream(json.dumps([chunks, pace_s]), route=ROUTES[kind]):
            first_ms = first_ms or (time.perf_counter() - began_s) * 1000
            texts.append(text)
        assert len("".join(texts)) == 5 * chunks
        return first_ms

    async def astream(self, kind, chunks, pace_s) -> float:
        """Read by `Session.astream`, in this loop."""
        began_s, first_ms, texts = time.perf_counter(), 0.0, []
        async for text in self.session.astream(json.dumps([chunks, pace_s]), route=ROUTES[kind]):
            first_ms = first_ms or (time.perf_counter() - began_s) * 1000
            texts.append(text)
        assert len("".join(texts)) == 5 * chunks
        return first_ms

    async def litellm(self, kind, chunks, pace_s) -> float:
        """Read by LiteLLM's stream."""
        import litellm

        began_s, first_ms, texts = time.perf_counter(), 0.0, []
        base = {"openai": f"{self.base}/v1", "ollama": self.base, "gemini": f"{self.base}/v1beta"}[kind]
        answer = await litellm.acompletion(
            model=ROUTES[kind].replace("ollama/", "ollama_chat/"),
            messages=[{"role": "user", "content": json.dumps([chunks, pace_s])}],
            api_base=base,
            api_key="key",
            stream=True,
            stream_options={"include_usage": True},
        )
        async for chunk in answer:
            text = chunk.choices[0].delta.content if chunk.choices else None
            if text:
                first_ms = first_ms or (time.perf_counter() - began_s) * 1000
                texts.append(text)
        assert len("".join(texts)) == 5 * chunks
        return first_ms

    def close(self) -> None:
        """Close all connections."""
        self.session.close()
        self.run(self.http.close())
        self.run(self.own.close())


def compare(readers, kind, chunks, rounds, pace_s) -> dict[str, list[float]]:
    """Return CPU per 1,000 chunks of every contestant in every round, in ms."""
    cpu = {name: [] for name in CONTESTANTS}
    for name in cpu:
        readers.read(name, kind, 50, 0)
    for _ in range(rounds):
        for name, spent in cpu.items():
            began_s = time.process_time()
            readers.read(name, kind, chunks, pace_s)
            spent.append((time.process_time() - began_s) / chunks * 1e6)
    return cpu


def print_ratio(label, top, bottom, goal) -> None:
    ratios = sorted(a / b for a, b in zip(top, bottom, strict=True))
    ratio = statistics.median(ratios)
    note = "" if ratio <= goal else "  MISSED"
    print(f"  {label}: {ratio:.2f}, {ratios[0]:.2f} to {ratios[-1]:.2f} (goal: at most {goal:g}){note}", flush=True)


def print_cpu(readers, kind, options) -> None:
    for pace_s in (0, PACE_S, *([SLOW_PACE_S] if kind == "openai" else [])):
        label = f"a chunk each {pace_s * 1000:g} ms" if pace_s else "burst"
        chunks = options.chunks // 4 if pace_s == SLOW_PACE_S else options.chunks
        cpu = compare(readers, kind, chunks, options.rounds, pace_s)
        shown = ", ".join(f"{name} {statistics.median(spent):.1f}" for name, spent in cpu.items())
        print(f"{kind}, {label}: CPU per 1,000 chunks, in ms: {shown}")
        for name in ("client", "stream", "astream"):
            print_ratio(f"{name} / bare", cpu[name], cpu["bare"], CPU_OF_BARE)
            print_ratio(f"{name} / litellm", cpu[name], cpu["litellm"], CPU_OF_LITELLM)


def print_first_chunk(readers, kind, rounds) -> None:
    times = {name: [] for name in ("bare", "client", "stream", "astream")}
    for _ in range(rounds * 20):
        for name, taken in times.items():
            taken.append(readers.read(name, kind, 3, 0))
    for name in ("client", "stream", "astream"):
        middle = statistics.median(a - b for a, b in zip(times[name], times["bare"], strict=True))
        note = "" if middle <= FIRST_CHUNK_MS else "  MISSED"
        least = min(times[name]) - min(times["bare"])
        print(f"{kind}: first text of {name}, above the bare reader: {middle:.2f} ms, {least:.2f} ms between the best "
              f"of {rounds * 20} (goal: {FIRST_CHUNK_MS:g}){note}", flush=True)  # fmt: skip


def read_memory_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


async def print_memory(readers, name, streams, chunks) -> None:
    started_mb = read_memory_mb()
    tasks = [asyncio.create_task(getattr(readers, name)("openai", chunks, 0.05)) for _ in range(streams)]
    await asyncio.sleep(chunks * 0.05 / 4)
    quarter_mb = last_mb = read_memory_mb()
    while not any(task.done() for task in tasks):
        await asyncio.sleep(0.05)
        last_mb = read_memory_mb()
    await asyncio.gather(*tasks)
    grown = (last_mb - quarter_mb) * 2**20 / (streams * chunks * 0.75)
    print(f"{name}: {streams} streams of {chunks} chunks at once: +{quarter_mb - started_mb:.1f} MB after a quarter, "
          f"+{last_mb - started_mb:.1f} MB before their end: {grown:.0f} bytes for each further chunk")  # fmt: skip


def main(options) -> None:
    prepare_litellm_environment()
    receiver, sender = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=run_server, args=(sender,), daemon=True)
    server.start()
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        readers = Readers(runner, receiver.recv(), folder)
        for kind in options.kinds:
            print_cpu(readers, kind, options)
            print_first_chunk(readers, kind, options.rounds)
        for name in ("bare", "client", "astream"):
            runner.run(print_memory(readers, name, options.streams, 200))
        readers.close()
    server.terminate()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--kinds", nargs="+", choices=ROUTES, default=list(ROUTES))
    main(parser.parse_args())
