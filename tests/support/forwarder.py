"""A server between Daguerre and another server, which can be cut off, hang or be slow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Literal

_CHUNK_BYTES = 64 << 10


class Forwarder:
    """Forwards connections to a port of loopback, or to a Unix socket.

    In the mode `refuse` it closes connections at once, in `hang` it accepts and forwards nothing more, and in
    `lose responses` requests arrive, but no response comes back. `delay_s` is added to each chunk. `answer` is the HTTP
    response to each request on a new connection, in place of forwarding.
    """

    def __init__(self, target: int | Path) -> None:
        self.mode: Literal["forward", "refuse", "hang", "lose responses"] = "forward"
        self.delay_s = 0.0
        self.answer: bytes | None = None
        self.port = 0
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()

    @classmethod
    @asynccontextmanager
    async def open(cls, target: int | Path, socket_path: Path | None = None) -> AsyncIterator[Forwarder]:
        """Listens on a free port of loopback, or on a Unix socket."""
        self = cls(target)
        if socket_path is None:
            server = await asyncio.start_server(self._handle, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
        else:
            server = await asyncio.start_unix_server(self._handle, socket_path)
        try:
            yield self
        finally:
            server.close()
            self.drop_connections()

    def cut_off(self) -> None:
        self.mode = "refuse"
        self.drop_connections()

    def restore(self) -> None:
        self.mode, self.answer = "forward", None
        self.drop_connections()

    def answer_all(self, status: str, body: str = "") -> None:
        self.answer = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()
        self.drop_connections()

    def drop_connections(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode == "refuse":
            writer.transport.abort()
            return
        self._writers.add(writer)
        if self.answer is not None:
            await self._answer(reader, writer, self.answer)
            return
        with suppress(OSError, asyncio.CancelledError):  # asyncio would log the end of the test
            other_reader, other_writer = await self._connect()
            self._writers.add(other_writer)
            try:
                await asyncio.gather(
                    self._forward(reader, other_writer, is_response=False),
                    self._forward(other_reader, writer, is_response=True),
                )
            finally:
                for each in (writer, other_writer):
                    self._writers.discard(each)
                    each.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytes) -> None:
        with suppress(OSError, asyncio.CancelledError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            while await reader.read(_CHUNK_BYTES):  # the rest of the request: a reset would lose the response
                pass
        self._writers.discard(writer)
        writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._target, Path):
            return await asyncio.open_unix_connection(self._target)
        return await asyncio.open_connection("127.0.0.1", self._target)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_response: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                while self.mode == "hang":
                    await asyncio.sleep(0.05)
                if self.mode == "lose responses" and is_response:
                    writer.transport.abort()
                    return
                writer.write(data)
                await writer.drain()
            writer.close()
