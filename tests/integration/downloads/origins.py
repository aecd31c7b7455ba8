"""Origins for tests, i.e. servers of pictures, and requests that download from them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from service.addresses import AllowedAddresses
from service.config.settings import Settings
from service.downloads.client import DownloadClient, DownloadTimeouts
from service.storage.local.originals import LocalOriginals
from service.uploads import receiving
from service.uploads.receiving import UploadLimits
from tests.conftest import Client, Tenant
from tests.support.api import error_of
from tests.support.samples import jpeg

LOCAL = pytest.mark.settings(fetch_allow="127.0.0.1")
QUICK = DownloadTimeouts(connect_s=0.3, read_s=0.3, total_s=1)

Serve = Callable[[Callable[[web.Request], Awaitable[web.StreamResponse]]], Awaitable[URL]]
Say = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(say: Say) -> AsyncIterator[int]:
    """Runs a server on loopback and yields its port. Its connections end with the block, unlike those of asyncio."""
    connections: set[asyncio.Task[None]] = set()

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await say(reader, writer)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.create_task(serve_one(reader, writer)))

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
    for connection in connections:
        connection.cancel()
    await asyncio.gather(*connections, return_exceptions=True)


@asynccontextmanager
async def raw_origin(answer: bytes, *, then_close: bool = True) -> AsyncIterator[str]:
    """Runs an origin that sends these bytes and then closes the connection, or leaves it open."""

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        if not then_close:
            await reader.read()

    async with listening(say) as port:
        yield f"http://127.0.0.1:{port}/picture.jpg"


async def picture(_: web.Request) -> web.Response:
    return web.Response(body=jpeg(), content_type="image/jpeg")


async def get(api: Client, tenant: Tenant, url: object, **parameters: str) -> Any:
    return await api.get("/v1/images", params={"url": str(url)} | parameters, headers=tenant.headers)


async def refusal(api: Client, tenant: Tenant, url: object) -> tuple[int, str]:
    status, code, _ = await error_of(await get(api, tenant, url))
    return status, code


async def fetch(url: str, settings: Settings, timeouts: DownloadTimeouts = QUICK) -> receiving.Upload:
    storage = LocalOriginals(settings.storage_folder)
    storage.prepare()
    limits = UploadLimits(1 << 20, 10, 10)
    async with (
        DownloadClient.connect(AllowedAddresses.parse("127.0.0.1"), lookups=1, timeouts=timeouts) as client,
        client.get(URL(url)) as origin,
    ):
        return await receiving.receive(origin.chunks(), storage, limits)


class FixedResolver(AbstractResolver):
    """Returns any addresses, unchecked, and counts the look-ups."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.asked = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked += 1
        return [
            ResolveResult(
                hostname=host, host=self.address, port=port, family=family or socket.AF_INET, proto=0, flags=0
            )
        ]

    async def close(self) -> None:
        pass
