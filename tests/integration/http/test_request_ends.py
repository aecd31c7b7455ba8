"""A large file is counted, logged and timed at the end of its response, not after its head."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from service.config.settings import Settings
from service.ids import ImageId
from service.storage.local.originals import LocalOriginals
from service.telemetry.metrics import metrics
from tests.conftest import Tenant
from tests.support.samples import insert_image
from tests.support.scrapes import Scrape

pytestmark = pytest.mark.slow

ID = ImageId("AAAAAAA")
SIZE = 24 << 20  # more than the kernel buffers for a client that does not read
ROUTE = "/i/{id}"


@pytest.fixture(autouse=True)
async def large_file(settings: Settings, connection: Any, tenant: Tenant, port: int) -> bytes:
    storage = LocalOriginals(settings.storage_folder)
    data = os.urandom(SIZE)
    storage.path(ID).write_bytes(data)
    await insert_image(connection, tenant, ID, size=SIZE)
    return data


class Records:
    """What was counted and logged since this object was created."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._before = self._scrape()
        self._capfd = capfd
        self._log = ""

    def _scrape(self) -> Scrape:
        return Scrape(metrics.render(None).decode())

    def counted(self, status: int, method: str = "GET") -> float:
        return self._scrape().rise(
            self._before, "daguerre_http_requests_total", method=method, route=ROUTE, status=str(status)
        )

    def seconds(self) -> float:
        return self._scrape().rise(self._before, "daguerre_http_request_duration_seconds_sum", route=ROUTE)

    def logged(self) -> list[int]:
        """Returns the statuses of the log lines of requests."""
        self._log += self._capfd.readouterr().out
        return [int(status) for status in re.findall(r"status\S*?[=:]\s*\S*?(\d{3})\b", self._log)]

    async def wait(self, status: int, method: str = "GET") -> None:
        async with asyncio.timeout(10):
            while not self.counted(status, method):
                await asyncio.sleep(0.02)


@pytest.fixture
def records(capfd: pytest.CaptureFixture[str], large_file: bytes) -> Records:
    return Records(capfd)


@asynccontextmanager
async def slow_client(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Yields a client that has read the head and little more."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=client, limit=64 << 10)
    writer.write(f"GET /i/{ID} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    try:
        yield reader, writer
    finally:
        writer.close()


async def test_slow_download_is_counted_at_its_end(port: int, records: Records, large_file: bytes) -> None:
    async with slow_client(port) as (reader, _):
        began = time.monotonic()
        await asyncio.sleep(0.6)
        assert records.counted(200) == 0
        assert records.logged() == []
        assert await reader.readexactly(SIZE) == large_file
        slept = time.monotonic() - began
        await records.wait(200)
    assert 0.6 <= records.seconds() <= slept + 3
    assert records.logged() == [200]


async def test_client_that_leaves_is_counted_as_499(port: int, records: Records) -> None:
    async with slow_client(port) as (_, writer):
        await asyncio.sleep(0.1)
        writer.transport.abort()
    await records.wait(499)
    assert records.counted(200) == 0
    assert records.logged() == [499]


async def test_file_read_error_is_counted_as_503(
    port: int, records: Records, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """The file is truncated after the head was sent, as by a failing disk."""
    async with slow_client(port) as (reader, _):
        os.truncate(LocalOriginals(settings.storage_folder).path(ID), 1000)
        assert len(await reader.read(-1)) < SIZE
        await records.wait(503)
    assert records.counted(200) == records.counted(499) == 0
    assert records.logged() == [503]
    assert caplog.records == []


@pytest.mark.parametrize(
    ("method", "headers", "status", "size"),
    [
        ("GET", {}, 200, SIZE),
        ("HEAD", {}, 200, 0),
        ("GET", {"Range": "bytes=5-1000004"}, 206, 1_000_000),
        ("GET", {"Range": f"bytes={SIZE}-"}, 416, None),
        ("GET", {"If-None-Match": f'"{bytes(32).hex()}"'}, 304, 0),
    ],
)
async def test_every_response_is_counted_once(
    port: int, records: Records, method: str, headers: dict[str, str], status: int, size: int | None
) -> None:
    async with aiohttp.request(method, f"http://127.0.0.1:{port}/i/{ID}", headers=headers) as response:
        assert response.status == status
        body = await response.read()
        assert size is None or len(body) == size
        assert response.headers["X-Request-Id"]
    await records.wait(status, method)
    assert records.counted(status, method) == 1
    assert records.logged() == [status]


@pytest.mark.settings(x_accel_redirect="/protected")
async def test_accel_response_is_counted_at_once(port: int, records: Records) -> None:
    """The proxy sends the file, and logs how that ended."""
    async with aiohttp.request("GET", f"http://127.0.0.1:{port}/i/{ID}") as response:
        assert response.headers["X-Accel-Redirect"].endswith(f"/{ID}")
    await records.wait(200)
    assert records.logged() == [200]
