"""URLs of pictures: which are valid, and that they are sent byte for byte."""

from __future__ import annotations

import asyncio
from urllib.parse import quote, quote_plus

import pytest
from aiohttp import web
from yarl import URL

from service.addresses import AllowedAddresses
from service.downloads.client import DownloadClient, parse_url
from service.errors import ServiceError
from tests.conftest import Client, Tenant
from tests.integration.downloads.origins import (
    LOCAL,
    FixedResolver,
    Serve,
    listening,
    picture,
)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "ftp://e.example/",
            "file:///etc/passwd",
            "data:image/png;base64,AAAA",
            "e.example/a.jpg",
            "//e.example/a",
            "http:",
        ),
        *(
            "http:///a.jpg",
            "http://e.example:0/",
            "http://e.example:99999/",
            "http://user@e.example/",
            "http://:pw@e.example/",
        ),
        *(
            "http://e.example/\x00",
            "http://e.ex\nample/",
            "gopher://e.example/",
            "http://[::1/",
            "http://e.example/" + "a" * 8000,
        ),
    ],
)
def test_invalid_url_is_refused(url: str) -> None:
    with pytest.raises(ServiceError, match="invalid-url"):
        parse_url(url)


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("/a%2fb%7Ec;d?sig=a%2bb+c%3D&x='*'&x=%20", "/a%2fb%7Ec;d?sig=a%2bb+c%3D&x='*'&x=%20"),
        ("/a b/é?q=ü|", "/a%20b/%C3%A9?q=%C3%BC|"),
        ("/a%2fb|{c}?X=%7e%27%26%40%2F[1]^`\\&e=%zz%", "/a%2fb|{c}?X=%7e%27%26%40%2F[1]^`\\&e=%zz%"),
        ('/"<\u200b>?"<>', "/%22%3C%E2%80%8B%3E?%22%3C%3E"),
        ("/a/../b//./%2e%2e/c?", "/a/../b//./%2e%2e/c?"),
        ("?a=/../b", "/?a=/../b"),
        ("/caf\udce9", "/caf%E9"),
        ("", "/"),
    ],
)
async def test_url_is_sent_byte_for_byte(url: str, target: str) -> None:
    assert await targets_of(url, [PICTURE]) == [target]


@pytest.mark.parametrize(
    ("location", "target"),
    [
        *((target, target) for target in ("/x%27y%26%40%2F%7E?sig=%2b%2F%3d&a=[1]", "/a|{b}?c=%27|{d}", "/?", "/%e9%")),
        ("../x?y=%27", "/a/x?y=%27"),
        ("?z=%7e", "/a/b%2fc/d?z=%7e"),
        ("e/./f/../%2e%2e", "/a/b%2fc/e/%2e%2e"),
        ("/a b/é#part", "/a%20b/%C3%A9"),
        (b"/caf\xe9?\xc3\xa9", "/caf%E9?%C3%A9"),
        ("  /blank\t", "/blank"),
        ("//{host}/%7e", "/%7e"),
        ("HTTP://{host}/%7e?{x}", "/%7e?{x}"),
    ],
)
async def test_redirect_is_followed_byte_for_byte(location: str | bytes, target: str) -> None:
    raw = location if isinstance(location, bytes) else location.encode()
    redirect = b"HTTP/1.1 302 Found\r\nLocation: " + raw + b"\r\nContent-Length: 0\r\n\r\n"
    assert await targets_of("/a/b%2fc/d?q=%27", [redirect, PICTURE]) == ["/a/b%2fc/d?q=%27", target]


PICTURE = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"


async def targets_of(target: str, answers: list[bytes]) -> list[str]:
    """Returns the request targets that an origin with these responses receives. `{host}` stands for its own address."""
    lines: list[bytes] = []

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append((await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")[0])
        writer.write(answers[len(lines) - 1].replace(b"{host}", host.encode()))

    async with listening(say) as port:
        host = f"127.0.0.1:{port}"
        async with (
            DownloadClient.connect(AllowedAddresses.parse("127.0.0.1"), lookups=1) as client,
            client.get(parse_url(f"http://{host}{target}#part")),
        ):
            pass
    return [line.decode("ascii").removeprefix("GET ").removesuffix(" HTTP/1.1") for line in lines]


@LOCAL
@pytest.mark.usefixtures("worker")
async def test_url_parameter_is_decoded_once(api: Client, tenant: Tenant, serve: Serve) -> None:
    heard = []

    async def listen(request: web.Request) -> web.Response:
        heard.append(request.raw_path)
        return await picture(request)

    origin = await serve(listen)
    target = "a%27b%252F|{c}?sig=%2b+%7E&x=[1]"
    for query in (quote(f"{origin}{target}", safe=""), quote_plus(f"{origin}{target}")):
        address = URL(f"/v1/images?url={query}", encoded=True)
        assert (await api.get(address, headers=tenant.headers)).status == 200
    address = URL(f"/v1/images?url={quote(str(origin))}caf%E9", encoded=True)
    assert (await api.get(address, headers=tenant.headers)).status == 200
    response = await api.post("/v1/images", json={"url": f"{origin}{target}"}, headers=tenant.headers)
    assert response.status == 200
    assert heard == [f"/{target}", f"/{target}", "/caf%E9", f"/{target}"]


async def test_host_is_sent_as_idna(serve: Serve) -> None:
    heard = []

    async def listen(request: web.Request) -> web.Response:
        heard.append(request.headers["Host"])
        return await picture(request)

    port = (await serve(listen)).port
    resolver = FixedResolver("127.0.0.1")
    async with (
        DownloadClient.connect(AllowedAddresses.parse("127.0.0.1"), lookups=1, resolver=resolver) as client,
        client.get(parse_url(f"http://B\u00fccher.example:{port}/%27")),
    ):
        assert heard == [f"xn--bcher-kva.example:{port}"]
