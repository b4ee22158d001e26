"""Connections that cannot be made: each reason has its own message, which names what to change."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from llmkit.client_litellm import LiteLLMClient
from llmkit.errors import LLMConfigurationError, LLMError, LLMUnavailable
from llmkit.ports import AttemptLog
from llmkit.settings import load_settings
from llmkit.testing import get_refused_url
from llmkit.types import LLMRequest, Route

PATHS = ("fast", "reference")
OLLAMA = Route.parse("ollama/llama3.2")
NOW = datetime.now(UTC)


@pytest.fixture(params=PATHS)
def path(request):
    return request.param


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch) -> None:
    """Remove what the machine says about proxies and certificates."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


async def no_wait(_seconds: float) -> None: ...


async def fail(base: str, path: str, log: AttemptLog | None = None) -> LLMError:
    client = LiteLLMClient(load_settings(ollama_api_base=base, request_path=path, max_retries=2), sleep=no_wait)
    with pytest.raises(LLMError) as caught:
        await client.call(OLLAMA, LLMRequest(messages="Hello"), log or AttemptLog())
    await client.close()
    return caught.value


# --- connections that were kept ----------------------------------------------------------------------------------


class ForgetfulServer(threading.Thread):
    """An Ollama that keeps each connection until the test ends it, as servers do after some seconds."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections: list[socket.socket] = []

    def run(self) -> None:
        with contextlib.suppress(OSError):  # the end of the test
            while True:
                connection, _ = self._listener.accept()
                self.connections.append(connection)
                connection.recv(65_536)
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(HI)
                )
                connection.sendall(HI)

    def close(self) -> None:
        # `shutdown` wakes the thread that waits in `accept`.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.join()
        for each in self.connections:
            each.close()


HI = b'{"message": {"role": "assistant", "content": "Hi"}, "done": true, "done_reason": "stop", "eval_count": 1}'


async def test_a_connection_that_ended_while_the_loop_was_busy_is_not_used(path) -> None:
    """Importing a library in the loop's thread takes seconds, in which a server gives up its idle connections."""
    server = ForgetfulServer()
    server.start()
    log, settings = AttemptLog(), load_settings(ollama_api_base=server.url, request_path=path, max_retries=0)
    client = LiteLLMClient(settings)
    for _ in range(3):
        assert (await client.call(OLLAMA, LLMRequest(messages="Hello"), log)).text == "Hi"
        server.connections[-1].shutdown(socket.SHUT_RDWR)  # and no turn of the loop before the next call
    await client.close()
    server.close()
    assert [attempt.status for attempt in log.attempts] == ["SUCCEEDED"] * 3


# --- TLS ---------------------------------------------------------------------------------------------------------


def make_certificate(folder: Path, *, begins: datetime, ends: datetime, host: str = "127.0.0.1") -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test server")])
    is_address = host[0].isdigit()
    alternative = x509.IPAddress(ip_address(host)) if is_address else x509.DNSName(host)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "server.pem"
    file.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return file


@asynccontextmanager
async def serving_tls(certificate: Path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    async def handle(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


DAY = timedelta(days=1)
CERTIFICATES = {
    "expired": ({"begins": NOW - 9 * DAY, "ends": NOW - DAY}, "has expired"),
    "not yet valid": ({"begins": NOW + DAY, "ends": NOW + 9 * DAY}, "is not valid yet"),
    "of another name": ({"begins": NOW - DAY, "ends": NOW + DAY, "host": "example.org"}, "belongs to another host"),
    "of another address": ({"begins": NOW - DAY, "ends": NOW + DAY, "host": "127.0.0.9"}, "belongs to another host"),
}


@pytest.mark.parametrize("kind", CERTIFICATES)
async def test_what_is_wrong_with_a_certificate_is_named(kind, path, tmp_path, monkeypatch):
    options, words = CERTIFICATES[kind]
    certificate = make_certificate(tmp_path, **options)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))  # So that it is trusted, and nothing else is wrong.
    async with serving_tls(certificate) as base:
        error = await fail(base, path)
    assert type(error) is LLMConfigurationError
    assert words in str(error)


async def test_an_unknown_issuer_is_not_trusted(path, tmp_path):
    certificate = make_certificate(tmp_path, begins=NOW - DAY, ends=NOW + DAY)
    async with serving_tls(certificate) as base:
        error = await fail(base, path)
    assert type(error) is LLMConfigurationError
    assert "is not trusted: set SSL_CERT_FILE" in str(error)


async def test_a_server_without_tls_is_no_matter_of_certificates(path, serve_raw):
    base = serve_raw(200, {}).url.replace("http://", "https://")
    error = await fail(base, path)
    assert type(error) is LLMConfigurationError
    assert "does not speak TLS" in str(error)
    assert "LLM_OLLAMA_API_BASE with http://" in str(error)


async def test_plain_http_to_a_tls_server_is_named(path, serve_raw):
    error = await fail(serve_raw(400, b"Client sent an HTTP request to an HTTPS server.\n").url, path)
    assert type(error) is LLMConfigurationError
    assert "with https://" in str(error)


# --- proxies -----------------------------------------------------------------------------------------------------

ELSEWHERE = "http://ollama.example:11434"


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1080", "socks5h://127.0.0.1:1080", "ftp://127.0.0.1:21"])
async def test_a_proxy_of_another_kind_is_named_without_its_password(proxy, path, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", proxy.replace("//", "//user:canary@"))
    error = await fail(ELSEWHERE, path)
    assert type(error) is LLMConfigurationError
    assert f"The proxy {proxy} cannot be used" in str(error)
    assert "canary" not in str(error)


async def test_a_proxy_that_does_not_answer_is_named(path, monkeypatch):
    proxy = get_refused_url()
    monkeypatch.setenv("ALL_PROXY", proxy)
    log = AttemptLog()
    error = await fail(ELSEWHERE, path, log)
    assert type(error) is LLMUnavailable
    assert f"The proxy {proxy} does not answer" in str(error)
    assert "ollama serve" not in str(error)
    assert len(log.attempts) == 1


async def test_a_proxy_that_was_corrected_counts_for_the_next_client(path, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "socks5://127.0.0.1:1080")
    assert type(await fail(ELSEWHERE, path)) is LLMConfigurationError
    monkeypatch.setenv("HTTP_PROXY", get_refused_url())
    assert type(await fail(ELSEWHERE, path)) is LLMUnavailable


async def test_a_proxy_that_wants_a_password_is_not_a_wrong_key(path, monkeypatch, serve_raw):
    proxy = serve_raw(407, b"Proxy Authentication Required").url
    monkeypatch.setenv("HTTP_PROXY", proxy)
    error = await fail(ELSEWHERE, path)
    assert type(error) is LLMConfigurationError
    assert f"The proxy {proxy} requires a user and a password" in str(error)


async def test_a_proxy_that_opens_no_tunnel_is_named(path, monkeypatch):
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    proxy = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    error = await fail(ELSEWHERE.replace("http://", "https://"), path)
    server.close()
    assert type(error) is LLMUnavailable
    assert f"The proxy {proxy} does not let the request through" in str(error)


async def test_a_loopback_address_goes_through_no_proxy(path, monkeypatch, serve_raw):
    monkeypatch.setenv("HTTP_PROXY", "socks5://127.0.0.1:1080")
    answer = {
        "message": {"role": "assistant", "content": "fine"},
        "done": True,
        "prompt_eval_count": 1,
        "eval_count": 1,
    }
    client = LiteLLMClient(load_settings(ollama_api_base=serve_raw(200, answer).url, request_path=path))
    assert (await client.call(OLLAMA, LLMRequest(messages="Hi"), AttemptLog())).text == "fine"
    await client.close()


# --- refused connections ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_refused_connection_is_not_retried_within_a_call(host, path):
    log = AttemptLog()
    error = await fail(get_refused_url().replace("127.0.0.1", host), path, log)
    assert type(error) is LLMUnavailable
    assert error.retryable
    assert len(log.attempts) == 1
