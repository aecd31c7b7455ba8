"""Sends many requests at once, each on its own connection and from its own address of 127.0.0.0/8.

All connections are opened at the same time, and stay open until the last of them has its response.
"""

from __future__ import annotations

import asyncio
import os
import re
import resource
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from bench.wrk import BenchError

# Addresses of 127.0.0.0/8 that clients use, from 127.1.0.0.
_FIRST_CLIENT = 0x7F010000

_HEAD_END = b"\r\n\r\n"
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_CODE = re.compile(rb'"code": ?"([a-z-]+)"')
_RETRY_AFTER = re.compile(rb"\r\nretry-after: *(\d+)\r\n", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Request:
    """`data` are the bytes of the request; `kind` names it in tables."""

    kind: str
    data: bytes

    @classmethod
    def build(cls, kind: str, method: str, path: str, *, key: str, body: bytes | None = None) -> Request:
        """Returns a request of the API with this key. `body` is a JPEG."""
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: {key}\r\n"
        if body is not None:
            head += f"Content-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n"
        return cls(kind, f"{head}\r\n".encode() + (body or b""))


@dataclass(frozen=True, slots=True)
class Response:
    """`status` is 0 if there was no complete response, and `code` then says why. Otherwise `code` is that of an error.

    `seconds` is the time since the start of all connections.
    """

    kind: str
    seconds: float
    status: int
    code: str
    retry_after_s: int = 0

    @property
    def is_success(self) -> bool:
        return self.status in {200, 202}

    @property
    def is_refusal(self) -> bool:
        """Returns whether the server refused the request as it should: with 503 and Retry-After."""
        return self.status == 503 and self.retry_after_s > 0


def raise_descriptor_limit(files: int) -> None:
    """Allows this process, and those that it starts, this number of open files. Raises BenchError if it may not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < files:
        raise BenchError(
            f"these connections need {files} open files, and the limit is {hard}: raise it (`ulimit -Hn {files}`, as "
            "root), or choose fewer --connections."
        )
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))


async def send_all(port: int, requests: Sequence[Request], *, timeout_s: float) -> list[Response]:
    """Sends all requests at once. Returns what each client got, in the same order."""
    loop = asyncio.get_running_loop()
    started = time.monotonic()
    clients = [_Client(request, started, loop) for request in requests]
    try:
        return await asyncio.gather(*(client.run(port, number, timeout_s) for number, client in enumerate(clients)))
    finally:
        for client in clients:
            client.close()


class _Client(asyncio.Protocol):
    """One connection, with one request."""

    def __init__(self, request: Request, started: float, loop: asyncio.AbstractEventLoop) -> None:
        self._request = request
        self._started = started
        self._loop = loop
        self._received = bytearray()
        self._total_bytes = 0
        self._transport: asyncio.Transport | None = None
        self._socket: socket.socket | None = None
        self._response: asyncio.Future[Response] = loop.create_future()

    async def run(self, port: int, number: int, timeout_s: float) -> Response:
        timer = self._loop.call_later(timeout_s, self._end, "timeout")
        connecting = self._loop.create_task(self._connect(port, number))
        try:
            return await self._response
        finally:
            timer.cancel()
            connecting.cancel()

    async def _connect(self, port: int, number: int) -> None:
        try:
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            self._socket.setblocking(False)
            self._socket.bind((socket.inet_ntoa((_FIRST_CLIENT + number).to_bytes(4, "big")), 0))
            await self._loop.sock_connect(self._socket, ("127.0.0.1", port))
            await self._loop.create_connection(lambda: self, sock=self._socket)
        except OSError as error:
            self._end(f"not connected: {os.strerror(error.errno or 0)}")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._request.data)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._total_bytes and (end := self._received.find(_HEAD_END)) >= 0:
            length = _CONTENT_LENGTH.search(self._received, 0, end + 2)
            self._total_bytes = end + len(_HEAD_END) + (int(length[1]) if length else 0)
        if self._total_bytes and len(self._received) >= self._total_bytes:
            self._finish(bytes(self._received))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end("closed" if exc is None else "reset")

    def _finish(self, received: bytes) -> None:
        if self._response.done():
            return
        head, _, body = received.partition(_HEAD_END)
        match = _STATUS.match(head)
        if match is None:
            self._end("not HTTP")
            return
        status = int(match[1])
        code = _CODE.search(body) if status >= 400 else None
        retry_after = _RETRY_AFTER.search(head + b"\r\n")
        self._set_response(
            status, code[1].decode() if code else "", retry_after_s=int(retry_after[1]) if retry_after else 0
        )

    def _end(self, fault: str) -> None:
        if not self._response.done():
            self._set_response(0, fault)

    def _set_response(self, status: int, code: str, *, retry_after_s: int = 0) -> None:
        seconds = time.monotonic() - self._started
        self._response.set_result(Response(self._request.kind, seconds, status, code, retry_after_s))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
        elif self._socket is not None:
            self._socket.close()
