"""A picture as an answer: conditional, in part, from memory or straight from its file."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from functools import partial
from typing import BinaryIO, NamedTuple

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from service.api import envelope
from service.api.protocol import UNREAD_S
from service.delivery.pictures import Picture
from service.errors import ServiceError
from service.storage.files import in_thread, unavailable

# The system takes less at a time, as a rule; this bounds what one client is given before the others.
_PIECE_BYTES = 1 << 20


class Part(NamedTuple):
    """Bytes of a picture: from `start` until before `stop`."""

    start: int
    stop: int


async def send(request: web.Request, picture: Picture, *, accel_prefix: str = "") -> web.StreamResponse:
    """With `accel_prefix` what is large is left to a proxy, which knows the file under that path.

    Raises `storage-unavailable`.
    """
    if _is_known(request, picture):
        headers = {name: value for name, value in picture.headers.items() if name != "Content-Type"}
        return web.Response(status=304, headers=headers)
    data = picture.stored.data
    if data is None and accel_prefix:
        headers = {name: value for name, value in picture.headers.items() if name != "Accept-Ranges"}  # nginx adds it
        return web.Response(headers={**headers, "X-Accel-Redirect": accel_prefix + picture.accel_path})
    try:
        part = _part(request, picture)
    except ServiceError as error:
        return envelope.error(error, {"Content-Range": f"bytes */{picture.stored.size}"})
    status, headers = 200, dict(picture.headers)
    if part is None:
        part = Part(0, picture.stored.size)
    else:
        status = 206
        headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{picture.stored.size}"
    if data is not None:
        return web.Response(
            status=status, headers=headers, body=data if status == 200 else data[part.start : part.stop]
        )
    with unavailable():
        try:
            file = await in_thread(lambda: picture.stored.path.open("rb", buffering=0))
        except FileNotFoundError as error:
            raise ServiceError("image-not-found") from error  # deleted this moment
    return FileAnswer(file, part, status, headers)


def _is_known(request: web.Request, picture: Picture) -> bool:
    """Whether the client has it already (RFC 9110, 13.2.2)."""
    if (etags := request.if_none_match) is not None:
        return any(etag.value in {picture.etag, "*"} for etag in etags)
    since = request.if_modified_since
    return since is not None and picture.modified_s <= since.timestamp()


def _part(request: web.Request, picture: Picture) -> Part | None:
    """None for all of it: without a Range, with several or one that cannot be read, or where If-Range names another
    state of the picture. Raises `range-not-satisfiable`.
    """
    if "Range" not in request.headers or request.method != "GET":
        return None
    condition = request.headers.get("If-Range")
    if condition is not None and condition not in {f'"{picture.etag}"', picture.headers.get("Last-Modified")}:
        return None
    try:
        asked = request.http_range
    except ValueError:
        return None
    size = picture.stored.size
    start, stop, _ = asked.indices(size)
    if asked.start is None:
        return None
    if start >= stop:
        raise ServiceError("range-not-satisfiable")
    return Part(start, stop)


class FileAnswer(web.StreamResponse):
    """Bytes that go from the file to the connection inside the system (sendfile), in a thread, since the disk may be
    slow; uvloop's transports have no way to do that, so it is done on a copy of the connection's descriptor while the
    transport has nothing to write.
    """

    def __init__(self, file: BinaryIO, part: Part, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(status=status, headers=headers)
        self.content_length = part.stop - part.start
        self._file = file
        self._part = part

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        try:
            writer = await super().prepare(request)
            if writer is not None and request.method != "HEAD":
                await writer.drain()  # this returns when the system has taken the headers
                await self._send(request)
            return writer
        finally:
            self._file.close()

    async def _send(self, request: web.BaseRequest) -> None:
        if request.transport is None:
            raise ConnectionResetError("the client has left")
        connection = os.dup(request.transport.get_extra_info("socket").fileno())
        try:
            at = self._part.start
            while at < self._part.stop:
                count = min(self._part.stop - at, _PIECE_BYTES)
                sent = await in_thread(partial(_sendfile, connection, self._file.fileno(), at, count))
                if sent == 0:
                    raise ConnectionResetError("the file is shorter than it was")
                if sent is None:
                    await _until_writable(connection)
                    if _is_gone(request):
                        raise ConnectionResetError("the client has left")
                else:
                    at += sent
        finally:
            os.close(connection)


def _is_gone(request: web.BaseRequest) -> bool:
    return request.transport is None or request.transport.is_closing()


def _sendfile(connection: int, file: int, offset: int, count: int) -> int | None:
    """None where the connection takes nothing now."""
    try:
        return os.sendfile(connection, file, offset, count)
    except BlockingIOError:
        return None


async def _until_writable(connection: int) -> None:
    """Raises ConnectionResetError for a client that takes nothing for too long."""
    loop = asyncio.get_running_loop()
    writable = asyncio.Event()
    loop.add_writer(connection, writable.set)
    try:
        async with asyncio.timeout(UNREAD_S):
            await writable.wait()
    except TimeoutError:
        raise ConnectionResetError("the client takes nothing") from None
    finally:
        loop.remove_writer(connection)
