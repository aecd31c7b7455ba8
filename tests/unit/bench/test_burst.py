"""The client of the row `connections` reports everything that is not a proper response."""

from __future__ import annotations

import asyncio
import resource
import socket
import struct
from collections.abc import AsyncIterator
from typing import cast

import pytest

from bench import burst
from bench.burst import Request, Response
from bench.wrk import BenchError

REFUSAL = b'{"success":false,"error":{"code":"busy","message":"Try again"}}'
RESPONSES = {
    "ok": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "refused": b"HTTP/1.1 503 Busy\r\nRetry-After: 2\r\nContent-Length: %d\r\n\r\n%b" % (len(REFUSAL), REFUSAL),
    "without Retry-After": b"HTTP/1.1 503 Busy\r\nContent-Length: %d\r\n\r\n%b" % (len(REFUSAL), REFUSAL),
    "other protocol": b"SSH-2.0\r\n\r\n",
    "cut": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel",
    "closed": b"",
}


class Server(asyncio.Protocol):
    """Responds as the key of the request says."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        kind = data.decode().partition("X-Api-Key: ")[2].partition("\r\n")[0]
        if kind == "reset":
            linger = struct.pack("ii", 1, 0)
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.transport.abort()
        elif kind != "late":
            self.transport.write(RESPONSES[kind])
            if kind in {"cut", "closed"}:
                self.transport.close()


@pytest.fixture
async def port() -> AsyncIterator[int]:
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await asyncio.sleep(0.05)  # the clients have closed their connections


async def send(port: int, *kinds: str) -> list[Response]:
    requests = [Request.build(kind, "GET", "/", key=kind) for kind in kinds]
    return await burst.send_all(port, requests, timeout_s=0.5)


async def test_proper_responses(port: int) -> None:
    ok, refused = await send(port, "ok", "refused")
    assert (ok.status, ok.code, ok.is_success, ok.is_refusal) == (200, "", True, False)
    assert (refused.status, refused.code, refused.retry_after_s) == (503, "busy", 2)
    assert (refused.is_success, refused.is_refusal) == (False, True)


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        ("without Retry-After", 503, "busy"),
        ("other protocol", 0, "not HTTP"),
        ("cut", 0, "closed"),
        ("closed", 0, "closed"),
        ("reset", 0, "reset"),
        ("late", 0, "timeout"),
    ],
)
async def test_other_responses(port: int, kind: str, status: int, code: str) -> None:
    [response] = await send(port, kind)
    assert (response.status, response.code, response.is_success, response.is_refusal) == (status, code, False, False)


async def test_refused_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    [response] = await send(port, "ok")
    assert (response.status, response.code) == (0, "not connected: Connection refused")


def test_too_low_limit_says_what_to_do() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY:
        pytest.skip("no limit")
    with pytest.raises(BenchError, match=f"need {hard + 1} open files, and the limit is {hard}: raise it"):
        burst.raise_descriptor_limit(hard + 1)
