"""Requests as bytes on a connection, and the bytes of their responses."""

from __future__ import annotations

import asyncio
import re


async def exchange(port: int, *pieces: bytes) -> tuple[int, dict[str, str], bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
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


async def send_raw(port: int, *pieces: bytes) -> bytes:
    """Everything that is answered, up to the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.05)
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()


def statuses(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", answers)]


def upload_head(key: str, length: int) -> bytes:
    """Returns an upload up to its body. The key is in the query, where a careless log line would show it."""
    return (
        f"POST /v1/images?key={key} HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {length}\r\n\r\n"
    ).encode()
