"""Content codings of origins: decoded, or refused within bounds."""

from __future__ import annotations

import gzip
import random
import zlib
from collections.abc import AsyncIterator, Callable

import pytest

from service.config.settings import Settings
from service.downloads.decoding import DecodingError, decode
from tests.conftest import Client, Tenant
from tests.integration.downloads.origins import (
    LOCAL,
    get,
    raw_origin,
    refusal,
)
from tests.support.samples import jpeg, stored_files

pytestmark = pytest.mark.slow


def deflate(data: bytes) -> bytes:
    return zlib.compress(data)[2:-4]


@LOCAL
@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("coding", "code"),
    [
        *((name, gzip.compress) for name in ("x-gzip", "X-GZip", "GZIP", "identity, gzip", "aws-chunked,gzip")),
        ("gzip", lambda data: gzip.compress(data[:99]) + gzip.compress(data[99:])),
        ("gzip", lambda data: gzip.compress(data) + b"\0\0trailer"),
        ("deflate", zlib.compress),
        ("deflate", deflate),
        ("deflate, x-gzip", lambda data: gzip.compress(zlib.compress(data))),
        *((name, bytes) for name in ("identity", "aws-chunked", "UTF-8", "none")),
    ],
)
async def test_coded_body_is_stored_decoded(
    api: Client, tenant: Tenant, settings: Settings, coding: str, code: Callable[[bytes], bytes]
) -> None:
    body = code(jpeg())
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nContent-Length: {len(body)}\r\n\r\n"
    async with raw_origin(head.encode() + body) as url:
        assert (await get(api, tenant, url)).status == 200
    [file] = stored_files(settings)
    assert file.read_bytes() == jpeg()


def _gzip(data: bytes) -> bytes:
    """The same bytes in every process: parameters name tests."""
    return gzip.compress(data, mtime=0)


@LOCAL
@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("x-gzip", b"hello"),
        ("x-gzip", _gzip(bytes(1000))[:-3]),
        ("gzip", _gzip(b"") * 200),
        ("gzip, gzip, gzip", _gzip(_gzip(_gzip(bytes(1000))))),
        ("deflate", b"\xff" * 100),
        ("br", b"hello"),
        ("zstd", b"hello"),
    ],
)
async def test_body_that_cannot_be_decoded_is_refused(
    api: Client, tenant: Tenant, settings: Settings, coding: str, body: bytes
) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nContent-Length: {len(body)}\r\n\r\n"
    async with raw_origin(head.encode() + body) as url:
        assert await refusal(api, tenant, url) == (422, "origin-refused")
    assert stored_files(settings) == []


async def test_empty_blocks_of_two_codings_are_refused() -> None:
    """They cost much time, and yield no byte that a limit would count."""
    inner = zlib.compressobj(wbits=31)
    empty_blocks = inner.compress(b"") + b"\0\0\0\xff\xff" * 1_000_000
    outer = gzip.compress(empty_blocks)
    assert len(outer) < 20_000

    async def send() -> AsyncIterator[bytes]:
        yield outer

    with pytest.raises(DecodingError, match="without content"):
        _ = [piece async for piece in decode(send(), ["gzip", "gzip"])]


async def test_incompressible_body_is_decoded() -> None:
    data = random.Random(1).randbytes(4 << 20)
    stored = zlib.compressobj(0, wbits=31)

    async def send() -> AsyncIterator[bytes]:
        for at in range(0, len(data), 1000):  # each flushed by itself, as servers do that stream
            yield stored.compress(data[at : at + 1000]) + stored.flush(zlib.Z_SYNC_FLUSH)
        yield stored.flush()

    assert b"".join([piece async for piece in decode(send(), ["gzip"])]) == data


async def test_decoding_does_not_depend_on_chunks() -> None:
    data = bytes(200_000) + jpeg()
    body = gzip.compress(data[:7]) + gzip.compress(data[7:])
    for size in (1, 7, 1000, len(body)):

        async def cut(size: int = size) -> AsyncIterator[bytes]:
            for at in range(0, len(body), size):
                yield body[at : at + size]

        pieces = [piece async for piece in decode(cut(), ["gzip"])]
        assert b"".join(pieces) == data
        assert max(map(len, pieces)) <= 65_536
