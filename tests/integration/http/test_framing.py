"""Request smuggling: an ambiguous request is refused, and nothing that follows it is handled as a request."""

from __future__ import annotations

import json

import pytest

from tests.conftest import Tenant
from tests.support.raw_http import send_raw, statuses
from tests.support.samples import jpeg

# If it is handled as a request, the response shows its id.
SMUGGLED = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Request-Id: smuggled\r\n\r\n"


def post(*lines: str, version: str = "1.1", body: str = "") -> bytes:
    return "\r\n".join([f"POST /v1/images HTTP/{version}", "Host: x", *lines, "", body]).encode()


CHUNKS = "3\r\nabc\r\n0\r\n\r\n"

REFUSED = {
    "version 0.9": b"GET /healthz HTTP/0.9\r\nHost: x\r\n\r\n",
    "version 0.9 without its name": b"GET /healthz\r\n\r\n",
    "version 1.2": b"GET /healthz HTTP/1.2\r\nHost: x\r\n\r\n",
    "version 2.0": b"GET /healthz HTTP/2.0\r\nHost: x\r\n\r\n",
    "version 2.0 with its preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "version 3.0": b"GET /healthz HTTP/3.0\r\nHost: x\r\n\r\n",
    "version 11.1": b"GET /healthz HTTP/11.1\r\nHost: x\r\n\r\n",
    "chunked in 1.0": post("Transfer-Encoding: chunked", "Connection: keep-alive", version="1.0", body=CHUNKS),
    "chunked and a length in 1.0": post(
        "Transfer-Encoding: chunked", "Content-Length: 13", "Connection: keep-alive", version="1.0", body=CHUNKS
    ),
    "length, then chunked": post("Content-Length: 4", "Transfer-Encoding: chunked", body=CHUNKS),
    "chunked, then length": post("Transfer-Encoding: chunked", "Content-Length: 4", body=CHUNKS),
    "gzip, chunked": post("Transfer-Encoding: gzip, chunked", body=CHUNKS),
    "chunked twice": post("Transfer-Encoding: chunked, chunked", body=CHUNKS),
    "chunked, identity": post("Transfer-Encoding: chunked, identity", body=CHUNKS),
    "identity": post("Transfer-Encoding: identity"),
    "xchunked": post("Transfer-Encoding: xchunked", body=CHUNKS),
    "vertical tab before chunked": post("Transfer-Encoding: \x0bchunked", body=CHUNKS),
    "chunked with a parameter": post("Transfer-Encoding: chunked;q=1", body=CHUNKS),
    "chunked in quotes": post('Transfer-Encoding: "chunked"', body=CHUNKS),
    "comma before chunked": post("Transfer-Encoding: , chunked", body=CHUNKS),
    "empty coding": post("Transfer-Encoding: "),
    "empty coding and a length": post("Transfer-Encoding: ", "Content-Length: 3", body="abc"),
    "two codings": post("Transfer-Encoding: chunked", "Transfer-Encoding: identity", body=CHUNKS),
    "space after the name": post("Transfer-Encoding : chunked", body=CHUNKS),
    "folded coding": post("Transfer-Encoding:", " chunked", body=CHUNKS),
    "two lengths": post("Content-Length: 3", "Content-Length: 4", body="abc"),
    "the same length twice": post("Content-Length: 3", "Content-Length: 3", body="abc"),
    "list of lengths": post("Content-Length: 3, 3", body="abc"),
    "length with a sign": post("Content-Length: +3", body="abc"),
    "hexadecimal length": post("Content-Length: 0x3", body="abc"),
    "length with an underscore": post("Content-Length: 1_0", body="abc"),
    "length with a space": post("Content-Length: 1 0", body="abc"),
    "empty length": post("Content-Length: "),
    "folded length": post("Content-Length: 3", " 4", body="abc"),
    "length over 64 bits": post("Content-Length: 18446744073709551617"),
    "length of all 64 bits": post("Content-Length: 18446744073709551615"),
    "length of all 64 bits after zeros": post("Content-Length: 0018446744073709551615"),
    "folded header": b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n",
    "space before the first header": b"GET /healthz HTTP/1.1\r\n Host: x\r\n\r\n",
    "LF alone": b"GET /healthz HTTP/1.1\nHost: x\n\n",
    "LF alone after a header": b"GET /healthz HTTP/1.1\r\nHost: x\nX: y\r\n\r\n",
    "LF alone at the end": b"GET /healthz HTTP/1.1\r\nHost: x\r\n\n",
    "CR alone": b"GET /healthz HTTP/1.1\rHost: x\r\r",
    "CR in a value": b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: a\rY: b\r\n\r\n",
    "CR in a name": b"GET /healthz HTTP/1.1\r\nHost: x\r\nX\rY: b\r\n\r\n",
    "CR in the path": b"GET /healthz\rx HTTP/1.1\r\nHost: x\r\n\r\n",
    "NUL in a value": b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n",
    "NUL in a name": b"GET /healthz HTTP/1.1\r\nHost: x\r\nX\0: b\r\n\r\n",
    "no colon": b"GET /healthz HTTP/1.1\r\nHost: x\r\nX\r\n\r\n",
    "no name": b"GET /healthz HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /healthz HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
}


@pytest.mark.parametrize("case", REFUSED)
async def test_ambiguous_framing_is_refused(port: int, case: str) -> None:
    for chunks in ([REFUSED[case] + SMUGGLED, SMUGGLED], [REFUSED[case], SMUGGLED]):
        responses = await send_raw(port, *chunks)
        assert statuses(responses) == [400]
        assert json.loads(responses.partition(b"\r\n\r\n")[2])["error"]["code"] == "bad-request"
        assert b"smuggled" not in responses


BROKEN_CHUNKS = {
    "LF after the size": "3\nabc\r\n0\r\n\r\n",
    "CR after the size": "3\rabc\r\n0\r\n\r\n",
    "LF after the data": "3\r\nabc\n0\r\n\r\n",
    "nothing after the data": "3\r\nabc0\r\n\r\n",
    "space after the size": "3 \r\nabc\r\n0\r\n\r\n",
    "LF in an extension": "3;a\nabc\r\n0\r\n\r\n",
    "sign before the size": "+3\r\nabc\r\n0\r\n\r\n",
    "0x before the size": "0x3\r\nabc\r\n0\r\n\r\n",
    "size over 64 bits": "fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("case", BROKEN_CHUNKS)
async def test_broken_chunks_end_the_connection(port: int, tenant: Tenant, case: str) -> None:
    head = post(f"X-Api-Key: {tenant.key}", "Content-Type: image/jpeg", "Transfer-Encoding: chunked")
    responses = await send_raw(port, head, BROKEN_CHUNKS[case].encode() + SMUGGLED, SMUGGLED)
    assert statuses(responses) == [400]
    assert b"smuggled" not in responses


async def test_ordinary_framing_is_accepted(port: int) -> None:
    """The connection is kept alive after each of them."""
    for request in (
        post("Content-Length: 3", body="abc"),
        post("Content-Length:\t003\t", body="abc"),
        post("Transfer-Encoding: Chunked", body=CHUNKS),
        post("Transfer-Encoding: chunked", body="3;name=value\r\nabc\r\n0\r\n\r\n"),
        post("Content-Length: 0"),
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\n\r\n",  # has no meaning without `Connection: upgrade`
        b"GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    ):
        responses = await send_raw(port, request + SMUGGLED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert len(statuses(responses)) == 2
        assert b"smuggled" in responses


UPGRADES = {
    "websocket": b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "h2c": b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
    "h2c after keep-alive": (
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: h2c\r\n\r\n"
    ),
    "with a body": post("Connection: Upgrade", "Upgrade: h2c", "Content-Length: 3", body="abc"),
    "with chunks": post("Connection: Upgrade", "Upgrade: x", "Transfer-Encoding: chunked", body=CHUNKS),
    "CONNECT": b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
    "CONNECT with a body": b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
}


@pytest.mark.parametrize("case", UPGRADES)
async def test_bytes_after_an_upgrade_are_dropped(port: int, case: str) -> None:
    """The head of the next request was once dropped, and its body handled as a request."""
    head = post(f"Content-Length: {len(SMUGGLED)}")
    for chunks in (
        [UPGRADES[case] + head, SMUGGLED],
        [UPGRADES[case], head, SMUGGLED],
        [UPGRADES[case] + SMUGGLED],
        [UPGRADES[case], SMUGGLED],
        [UPGRADES[case][:-5], UPGRADES[case][-5:] + head, SMUGGLED],
    ):
        responses = await send_raw(port, *chunks)
        assert len(statuses(responses)) == 1
        assert b"\r\nConnection: close\r\n" in responses
        assert b"smuggled" not in responses


async def test_requests_before_an_upgrade_are_answered(port: int) -> None:
    before = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Request-Id: before\r\n\r\n"
    for chunks in ([before * 3 + UPGRADES["h2c"] + SMUGGLED], [before * 3, UPGRADES["websocket"], SMUGGLED]):
        responses = await send_raw(port, *chunks)
        assert statuses(responses) == [200] * 4
        assert responses.count(b"before") == 3
        assert b"smuggled" not in responses


@pytest.mark.usefixtures("worker")
async def test_upload_that_offers_h2c_is_stored(port: int, tenant: Tenant) -> None:
    """Java's HTTP client offers it with its first request."""
    body = jpeg()
    head = post(
        f"X-Api-Key: {tenant.key}",
        "Content-Type: image/jpeg",
        "Connection: Upgrade, HTTP2-Settings",
        "Upgrade: h2c",
        "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
        f"Content-Length: {len(body)}",
    )
    responses = await send_raw(port, head, body[:1000], body[1000:])
    assert statuses(responses) == [200]
    assert f'"filesize":{len(body)}'.encode() in responses


@pytest.mark.slow
@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("case", ["chunked in 1.0", "version 2.0", "LF alone", "two lengths"])
async def test_upload_before_malformed_request_is_stored(port: int, tenant: Tenant, case: str) -> None:
    """They arrive in one chunk, and the malformed request does not affect the upload."""
    body = jpeg()
    head = post(f"X-Api-Key: {tenant.key}", "Content-Type: image/jpeg", f"Content-Length: {len(body)}")
    responses = await send_raw(port, head + body[:1000], body[1000:] + REFUSED[case] + SMUGGLED)
    assert statuses(responses) == [200, 400]
    assert b"smuggled" not in responses
