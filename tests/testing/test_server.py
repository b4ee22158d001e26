"""Life, accounting, transport faults and load of the stand-in servers, seen through plain HTTP."""

import asyncio
import contextlib
import errno
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import aiohttp
import httpx
import pytest

import llmkit.testing
from llmkit.testing import (
    AnthropicServer,
    Fault,
    GeminiServer,
    Load,
    OllamaServer,
    OpenAIServer,
    Reply,
    Usage,
    get_refused_url,
)

CHAT = {"model": "llama3.2", "messages": [{"role": "user", "content": "hi"}], "stream": False}
GENERATE = {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}
WIRES = [(OllamaServer, "/api/chat", CHAT), (GeminiServer, "/v1beta/models/gemini-2.5-flash:generateContent", GENERATE)]


def post(server, path="/api/chat", body=CHAT, timeout=60):
    request = urllib.request.Request(server.url + path, data=json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=timeout) as response:
        return json.loads(response.read())


@pytest.fixture
def server():
    with OllamaServer("yes") as server:
        yield server


@pytest.fixture(params=WIRES, ids=["ollama", "gemini"])
def wire(request):
    make, path, body = request.param
    with make() as server:
        yield server, path, body


def test_the_public_names_are_chosen():
    assert sorted(llmkit.testing.__all__) == llmkit.testing.__all__
    assert all(hasattr(llmkit.testing, name) for name in llmkit.testing.__all__)


def test_importing_is_light():
    code = "import sys, llmkit.testing; print(sorted({'aiohttp', 'litellm', 'pydantic', 'pandas'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


# -- life -----------------------------------------------------------------------------------------------------------


def test_start_stop_and_start_again_on_the_same_port():
    server = OllamaServer()
    with pytest.raises(RuntimeError, match="no address before it is started"):
        _ = server.url
    server.start().start()
    url = server.url
    post(server)
    server.stop()
    server.stop()
    with pytest.raises(urllib.error.URLError):
        post(server)
    with server:
        assert server.url == url
        post(server)
    assert server.call_count == 2


def test_a_taken_port_is_an_error(server):
    port = int(server.url.rsplit(":", 1)[1])
    with pytest.raises(OSError, match="in use"):
        OllamaServer(port=port).start()


@pytest.mark.parametrize("fault", [Fault.hang(), Fault.drip(1.0)])
def test_stopping_is_quick_and_ends_what_is_under_way(server, fault):
    server.script(fault)
    problems = []

    def call():
        try:
            post(server)
        except (OSError, http.client.HTTPException) as problem:
            problems.append(problem)

    callers = [threading.Thread(target=call) for _ in range(8)]
    for caller in callers:
        caller.start()
    assert server.wait_until_in_flight(8, 60)
    began = time.perf_counter()
    server.stop()
    assert time.perf_counter() - began < 25
    for caller in callers:
        caller.join(60)
    assert len(problems) == 8
    assert {call.outcome for call in server.calls} == {"stopped"}
    assert server.usage == Usage()


def test_who_comes_in_while_it_stops_is_sent_away():
    for _ in range(5):
        with OllamaServer() as server:
            late = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=60)
        # Reset, if it still stood in front of the door.
        with late, contextlib.suppress(ConnectionResetError):
            assert late.recv(1) == b""


def test_a_port_that_refuses():
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(get_refused_url(), timeout=5)


# -- accounting -----------------------------------------------------------------------------------------------------


def test_what_is_recorded(server):
    post(server)
    urllib.request.urlopen(server.url + "/api/tags?x=1").close()
    call, listing = server.requests
    assert (call.method, call.path, call.is_call, call.completed) == ("POST", "/api/chat", True, True)
    assert call.json == CHAT
    assert call.body == json.dumps(CHAT).encode()
    assert call.headers["CONTENT-LENGTH"] == str(len(call.body))
    assert call.received_at_s <= listing.received_at_s <= time.monotonic()
    assert (listing.path, dict(listing.query), listing.is_call) == ("/api/tags", {"x": "1"}, False)
    assert server.calls == (call,)
    assert (server.request_count, server.call_count, server.in_flight, server.max_in_flight) == (2, 1, 0, 1)
    server.clear()
    assert (server.requests, server.usage, server.request_count) == ((), Usage(), 0)


def test_few_requests_are_kept_and_all_are_counted():
    with OllamaServer(keep_requests=3) as server:
        for _ in range(5):
            post(server)
        assert (len(server.requests), server.call_count, server.usage.answers) == (3, 5, 5)


def test_an_answer_is_booked_before_the_client_has_it(wire):
    server, path, body = wire
    for number in range(1, 50):
        post(server, path, body)
        assert (server.usage.answers, server.in_flight) == (number, 0)


async def test_a_client_that_leaves_ends_its_request(wire):
    server, path, body = wire
    for fault in (Fault.hang(), Fault.drip(0.2)):
        server.clear()
        server.script(fault)
        async with aiohttp.ClientSession() as session:
            task = asyncio.create_task(_read(session, server.url + path, body))
            assert await asyncio.to_thread(server.wait_until_in_flight)
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert await asyncio.to_thread(server.wait_until_idle, 60)
        assert [call.client_disconnected for call in server.calls] == [True]
        assert server.usage == Usage()


async def _read(session, url, body):
    async with session.post(url, json=body) as response:
        return response.status, await response.read()


# -- scripts --------------------------------------------------------------------------------------------------------


def test_replies_in_order_and_the_last_repeats(server):
    server.script(["one", Reply("two"), "three"])
    assert [post(server)["message"]["content"] for _ in range(4)] == ["one", "two", "three", "three"]


def test_a_refused_request_uses_no_reply_up(server):
    server.script(["one", "two"])
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(server, body={**CHAT, "model": "nope"})
    caught.value.close()
    assert post(server)["message"]["content"] == "one"


def test_a_function_of_the_request(server):
    server.script(lambda request: Reply(request.json["messages"][0]["content"].upper()))
    assert post(server)["message"]["content"] == "HI"
    server.script(lambda request: 1 / 0)
    with pytest.raises(urllib.error.HTTPError, match="500") as caught:
        post(server)
    assert b"ZeroDivisionError" in caught.value.read()


def test_another_endpoint_can_be_scripted(server):
    server.script([Fault.status(500), Reply()], endpoint="/api/show")
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(server, "/api/show", {"model": "llama3.2"})
    caught.value.close()
    assert "model_info" in post(server, "/api/show", {"model": "llama3.2"})
    assert post(server)["message"]["content"] == "yes"


def test_bad_scripts_are_refused():
    with pytest.raises(ValueError, match="at least one reply"):
        OllamaServer([])
    with pytest.raises(ValueError, match="cannot exceed it"):
        Reply(output_tokens=3, reasoning_tokens=4)


# -- faults of the transport ----------------------------------------------------------------------------------------


async def answer_to(server, path, body, fault):
    server.script(fault)
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as session,
        session.post(server.url + path, json=body, allow_redirects=False) as response,
    ):
        return response.status, response.headers, await response.read()


async def test_delay(wire):
    began = time.perf_counter()
    status, _, _ = await answer_to(*wire, Fault.delay(0.2, then=Fault.delay(0.1)))
    assert status == 200
    assert time.perf_counter() - began >= 0.3
    assert wire[0].usage.answers == 1


async def test_drip(wire):
    began = time.perf_counter()
    _, _, whole = await answer_to(*wire, Reply("a b"))
    status, _, body = await answer_to(*wire, Fault.drip(0.01, Reply("a b"), piece_bytes=20))
    assert (status, len(json.loads(body))) == (200, len(json.loads(whole)))
    assert time.perf_counter() - began >= 0.01 * (len(whole) // 20 - 1)
    assert wire[0].usage.answers == 2


async def test_truncated(wire):
    with pytest.raises(aiohttp.ClientPayloadError):
        await answer_to(*wire, Fault.truncated())
    assert (wire[0].calls[0].outcome, wire[0].usage) == ("broken", Usage())


async def test_reset(wire):
    with pytest.raises(aiohttp.ClientOSError) as caught:
        await answer_to(*wire, Fault.reset())
    assert caught.value.errno == errno.ECONNRESET
    assert (wire[0].calls[0].outcome, wire[0].usage) == ("broken", Usage())


async def test_hang_up(wire):
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await answer_to(*wire, Fault.hang_up())
    assert (wire[0].calls[0].outcome, wire[0].usage) == ("broken", Usage())


async def test_bodies_that_are_no_answer(wire):
    _, headers, body = await answer_to(*wire, Fault.malformed())
    assert headers["Content-Type"].startswith("application/json")
    with pytest.raises(ValueError, match="Unterminated"):
        json.loads(body)
    status, headers, body = await answer_to(*wire, Fault.html(502))
    assert (status, headers["Content-Type"][:9], body[:9]) == (502, "text/html", b"<!DOCTYPE")
    assert (await answer_to(*wire, Fault.empty()))[2] == b""
    status, headers, _ = await answer_to(*wire, Fault.redirect("http://127.0.0.1:1/x"))
    assert (status, headers["Location"]) == (307, "http://127.0.0.1:1/x")
    assert wire[0].usage == Usage()


async def test_statuses(wire):
    for code in (400, 401, 403, 404, 408, 413, 422, 429, 500, 502, 503, 504):
        status, headers, body = await answer_to(*wire, Fault.status(code, "told so", headers={"X-Why": "test"}))
        assert (status, headers["X-Why"]) == (code, "test")
        assert b"told so" in body
    assert wire[0].usage == Usage()


async def test_retry_after(wire):
    server, path, body = wire
    _, headers, text = await answer_to(server, path, body, Fault.status(429, retry_after_s=1.5))
    if isinstance(server, OllamaServer):
        assert headers["Retry-After"] == "2"
    else:
        assert json.loads(text)["error"]["details"][-1]["retryDelay"] == "1.5s"


async def test_malformed_request(wire):
    server, path, _ = wire
    async with aiohttp.ClientSession() as session, session.post(server.url + path, data=b"{") as response:
        assert response.status == 400
    async with aiohttp.ClientSession() as session, session.get(server.url + "/nowhere") as response:
        assert response.status == 404


# -- load -----------------------------------------------------------------------------------------------------------


async def run(server, calls):
    async with aiohttp.ClientSession() as session:
        began = time.perf_counter()
        answers = await asyncio.gather(*(_read(session, server.url + "/api/chat", CHAT) for _ in range(calls)))
        return time.perf_counter() - began, [status for status, _ in answers]


async def test_capacity_and_latency(server):
    server.load = Load(latency_s=0.05, capacity=4)
    took, statuses = await run(server, 12)
    assert 0.15 <= took < 60
    assert statuses == [200] * 12
    assert (server.max_in_flight, server.in_flight) == (12, 0)


async def test_waiting_calls_are_served_in_order(server):
    server.load = Load(latency_s=0.1, capacity=1)
    ended = []
    async with aiohttp.ClientSession() as session:

        async def call(number):
            await _read(session, server.url + "/api/chat", {**CHAT, "number": number})
            ended.append(number)

        tasks = []
        for number in range(6):
            tasks.append(asyncio.create_task(call(number)))
            while server.call_count <= number:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        await asyncio.gather(*tasks)
    assert ended == [call.json["number"] for call in server.calls] == list(range(6))


@pytest.mark.slow
@pytest.mark.parametrize("overload_status", [429, 503])
async def test_a_full_queue_refuses(server, overload_status):
    server.load = Load(latency_s=0.5, capacity=2, max_queue=3, overload_status=overload_status)
    _, statuses = await run(server, 8)
    assert sorted(statuses) == [200] * 5 + [overload_status] * 3
    assert server.usage.answers == 5


async def test_a_waiting_client_that_leaves_frees_its_place(server):
    server.load = Load(latency_s=0.2, capacity=1)
    async with aiohttp.ClientSession() as session:
        first, second, third = [asyncio.create_task(_read(session, server.url + "/api/chat", CHAT)) for _ in range(3)]
        while server.call_count < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        second.cancel()
        assert [status for status, _ in await asyncio.gather(first, third)] == [200, 200]
    assert sorted(call.outcome for call in server.calls) == ["answered", "answered", "client_left"]


def test_capacity_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one slot"):
        Load(capacity=0)


def test_thousands_of_calls_a_second_do_not_pile_up():
    with OllamaServer(keep_requests=0) as server:
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
        body = json.dumps(CHAT)
        for _ in range(500):
            connection.request("POST", "/api/chat", body)
            connection.getresponse().read()
        connection.close()
        assert (server.requests, server.usage) == ((), Usage(500, 500, 500 * 6))


HELLO = [{"role": "user", "content": "hi"}]
TURN = [{"parts": [{"text": "hi"}]}]
WRONG = [
    (OpenAIServer, "/v1/chat/completions", {"messages": "hi"}),
    (OpenAIServer, "/v1/chat/completions", {"messages": [5]}),
    (OpenAIServer, "/v1/chat/completions", {"messages": HELLO, "max_tokens": "2"}),
    (OpenAIServer, "/v1/chat/completions", {"messages": HELLO, "max_tokens": True}),
    (OpenAIServer, "/v1/chat/completions", {"messages": HELLO, "stop": 5}),
    (OpenAIServer, "/v1/chat/completions", {"messages": HELLO, "response_format": "json"}),
    (OpenAIServer, "/v1/chat/completions", {"messages": HELLO, "model": ["a"]}),
    (AnthropicServer, "/v1/messages", {"messages": [5]}),
    (AnthropicServer, "/v1/messages", {"messages": HELLO, "max_tokens": "2"}),
    (AnthropicServer, "/v1/messages", {"messages": HELLO, "temperature": "hot"}),
    (AnthropicServer, "/v1/messages", {"messages": HELLO, "system": 5}),
    (AnthropicServer, "/v1/messages", {"messages": HELLO, "model": ["a"]}),
    (OllamaServer, "/api/chat", {"messages": HELLO, "keep_alive": "soon"}),
    (OllamaServer, "/api/chat", {"messages": HELLO, "options": 5}),
    (GeminiServer, "/v1beta/models/gemini-2.5-flash:generateContent", {"contents": "hi"}),
    (GeminiServer, "/v1beta/models/gemini-2.5-flash:generateContent", {"contents": TURN, "generationConfig": [1]}),
]


def test_a_field_of_the_wrong_type_is_a_bad_request():
    named = {OpenAIServer: "gpt-4o-mini", AnthropicServer: "claude-sonnet-5", OllamaServer: "llama3.2"}
    for make in {make for make, _, _ in WRONG}:
        with make() as server:
            for _, path, fields in (each for each in WRONG if each[0] is make):
                body = {"model": named.get(make), "max_tokens": 5} | fields
                reply = httpx.post(server.url + path, json=body, headers={"anthropic-version": "x"}, trust_env=False)
                assert reply.status_code == 400, (body, reply.text)


STREAMS = [
    (OllamaServer, "/api/chat", {**CHAT, "stream": True}, '{"error":"no more"}\n'),
    (
        OpenAIServer,
        "/v1/chat/completions",
        {**CHAT, "model": "gpt-4o-mini", "stream": True},
        'data: {"error":{"message":"no more","type":"server_error","param":null,"code":null}}\n\n',
    ),
]


@pytest.mark.parametrize(("make", "path", "body", "error"), STREAMS, ids=["ollama", "openai"])
async def test_faults_in_the_middle_of_a_stream(make, path, body, error):
    whole = Reply("one two three")
    with make([whole, Fault.stream_surplus(whole), Fault.stream_error(2, "no more", whole)]) as server:
        async with httpx.AsyncClient(base_url=server.url) as client:
            plain, surplus, broken = [(await client.post(path, json=body)).text for _ in range(3)]
        assert surplus.count("three") == 2 * plain.count("three") == 2
        assert broken.endswith(error)
        assert "three" not in broken
        assert [call.outcome for call in server.calls] == ["answered", "answered", "broken"]
        server.script(Fault.stream_break(2, whole))
        async with httpx.AsyncClient(base_url=server.url) as client:
            with pytest.raises(httpx.RemoteProtocolError):
                await client.post(path, json=body)
        assert server.calls[-1].outcome == "broken"


async def test_a_client_that_leaves_a_stream_is_noticed():
    with OllamaServer(Fault.stream_stall(1)) as server:
        async with aiohttp.ClientSession() as session:
            answer = await session.post(f"{server.url}/api/chat", json={**CHAT, "stream": True})
            assert json.loads(await answer.content.readline())["message"]["content"] == "This"
            left_at_s = time.monotonic()
            answer.close()
        assert server.wait_until_idle(60)
    assert server.calls[0].client_disconnected
    assert left_at_s <= server.calls[0].ended_at_s
