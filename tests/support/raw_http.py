"""Sends requests as bytes and returns the bytes of their responses."""

from __future__ import annotations

import asyncio
import re


async def exchange(port: int, *chunks: bytes) -> tuple[int, dict[str, str], bytes]:
    """Sends a request in chunks. Returns status, headers with lower-case names, and body of the response."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for chunk in chunks:
        writer.write(chunk)
        await asyncio.sleep(0.02)
    async with asyncio.timeout(5):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        status_line, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        body = await reader.readexactly(int(headers["content-length"]))
    writer.close()
    return int(status_line.split()[1]), headers, body


BAD_REQUESTS = {
    "an unknown method": b"BREW /v1/account?key=%s HTTP/1.1\r\nHost: x\r\n\r\n",
    "a bad character": b"GET /v1/account?key=%s\x01 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a long line": b"GET /v1/account?key=%s&x=" + b"y" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "a bad header": b"GET /v1/account?key=%s HTTP/1.1\r\nHost: x\r\nBad Header\r\n\r\n",
    "a bad length": b"POST /v1/images?key=%s HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    "a long header": b"GET /v1/account?key=%s HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 9000 + b"\r\n\r\n",
}


async def send_raw(port: int, *chunks: bytes) -> bytes:
    """Sends bytes in chunks. Returns everything that is received until the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for chunk in chunks:
            writer.write(chunk)
            await asyncio.sleep(0.05)
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()


def statuses(responses: bytes) -> list[int]:
    """Returns the status codes of all responses."""
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", responses)]


def upload_head(key: str, length: int) -> bytes:
    """Returns the head of an upload. The key is in the query, so that a test notices if it is logged."""
    return (
        f"POST /v1/images?key={key} HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {length}\r\n\r\n"
    ).encode()
