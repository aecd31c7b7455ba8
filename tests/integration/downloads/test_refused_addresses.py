"""Refused addresses: no spelling, name, redirect or proxy leads a download to one."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from aiohttp import web
from yarl import URL

from service.addresses import AllowedAddresses
from service.config.settings import Settings
from service.downloads.client import DownloadClient
from service.errors import ServiceError
from tests.conftest import Client, Tenant
from tests.integration.downloads.origins import (
    FixedResolver,
    Serve,
    get,
    picture,
    refusal,
)
from tests.support.api import error_of
from tests.support.samples import jpeg


@pytest.mark.slow
@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "LOCALHOST", "localhost.", "127.1", "127.0.1", "0", "0.0.0.0", "2130706433"),
        *(
            "0x7f000001",
            "0x7f.1",
            "0177.0.0.1",
            "017700000001",
            "127.0.0.1.",
            "①②⑦.0.0.1",
            "127。0。0。1",
            "127.127.127.127",
        ),
        *("[::1]", "[::]", "[::ffff:127.0.0.1]", "[::127.0.0.1]", "[0:0:0:0:0:ffff:7f00:1]", "[::ffff:0:127.0.0.1]"),
        *(
            "[64:ff9b::7f00:1]",
            "[2002:7f00:1::]",
            "[::1%25lo]",
            "[fe80::1%25lo]",
            "%31%32%37.0.0.1",
            "127.0.0.1%2eexample",
        ),
    ],
)
async def test_no_spelling_of_a_refused_address_connects(
    api: Client, tenant: Tenant, trap: tuple[int, list[object]], host: str
) -> None:
    port, peers = trap
    status, code = await refusal(api, tenant, f"http://{host}:{port}/a.jpg")
    assert (status, code) in {(400, "url-not-allowed"), (400, "invalid-url"), (422, "origin-not-found")}
    assert peers == []


async def test_response_hides_the_refused_address(api: Client, tenant: Tenant) -> None:
    status, code, message = await error_of(await get(api, tenant, "http://localhost:1/secret?token=1"))
    assert (status, code) == (400, "url-not-allowed")
    assert not any(word in message for word in ("127", "::1", "localhost", "secret", "token"))


async def test_redirect_target_is_checked(
    api: Client, tenant: Tenant, serve: Serve, trap: tuple[int, list[object]], settings: Settings
) -> None:
    port, peers = trap

    async def pass_on(_: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": f"http://127.0.0.1:{port}/"})

    origin = await serve(pass_on)
    async with DownloadClient.connect(AllowedAddresses.parse(f"127.0.0.1:{origin.port}"), lookups=1) as client:
        with pytest.raises(ServiceError, match="url-not-allowed"):
            async with client.get(origin):
                pass
    assert peers == []


async def test_name_with_one_refused_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*_: object) -> list[Any]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("93.184.215.14", "192.168.0.1")
        ]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    async with DownloadClient.connect(AllowedAddresses.parse(""), lookups=1) as client:
        with pytest.raises(ServiceError, match="url-not-allowed"):
            async with client.get(URL("http://mixed.example/")):
                pass


async def test_address_is_checked_when_connecting(trap: tuple[int, list[object]]) -> None:
    port, peers = trap
    resolver = FixedResolver("127.0.0.1")
    async with DownloadClient.connect(AllowedAddresses.parse(""), lookups=1, resolver=resolver) as client:
        with pytest.raises(ServiceError, match="url-not-allowed"):
            async with client.get(URL(f"http://rebound.example:{port}/")):
                pass
    assert peers == []


async def test_name_is_resolved_once_per_connection(serve: Serve) -> None:
    origin = await serve(picture)
    resolver = FixedResolver("127.0.0.1")
    async with (
        DownloadClient.connect(AllowedAddresses.parse("127.0.0.1"), lookups=1, resolver=resolver) as client,
        client.get(URL(f"http://once.example:{origin.port}/")),
    ):
        assert resolver.asked == 1


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 64 + ".example", "a..example"])
async def test_unknown_name_is_origin_not_found(api: Client, tenant: Tenant, host: str) -> None:
    assert await refusal(api, tenant, f"http://{host}/") in {(422, "origin-not-found"), (400, "invalid-url")}


async def test_proxy_in_the_environment_is_ignored(
    serve: Serve, trap: tuple[int, list[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, peers = trap
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    origin = await serve(picture)
    async with (
        DownloadClient.connect(AllowedAddresses.parse(f"127.0.0.1:{origin.port}"), lookups=1) as client,
        client.get(origin) as answer,
    ):
        assert answer.length == len(jpeg())
    assert peers == []
