"""A picture as an answer: conditional, in part, from memory or straight from its file."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from typing import BinaryIO, NamedTuple

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from service.delivery.memory_cache import Picture
from service.errors import ServiceError
from service.http import envelope
from service.http.protocol import LOOKS, UNREAD_S, count_unconfirmed
from service.limits.pace import Pace
from service.storage.files import in_thread, storage_errors
from service.storage.interface import StoredFile
from service.telemetry.metrics import CLIENT_LEFT

# The system takes less at a time, as a rule; this bounds what one client is given before the others.
_PIECE_BYTES = 1 << 20
# What sendfile raises about its connection; all else is about its file.
_OF_CONNECTION = frozenset(
    {errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENOTCONN}
)
_RANGE = re.compile(r"bytes=(?P<first>[0-9]{0,20})-(?P<last>[0-9]{0,20})", re.IGNORECASE)


class _FileFailed(ConnectionError):
    """The file cannot be read to its end. All that is left to do is to end the connection, which aiohttp does at a
    ConnectionError without a traceback.
    """


class FileChanged(Exception):
    """Since it was found, the file was removed, moved or made anew; what is there now has to be found again."""


class SendingEnd(NamedTuple):
    """How an answer ended. `status` is CLIENT_LEFT if its client left before the last byte; `code` is of an error that
    came after the head was sent.
    """

    status: int
    code: str | None = None
    cause: BaseException | None = None


class Part(NamedTuple):
    """Bytes of a picture: from `start` until before `stop`."""

    start: int
    stop: int


async def send(request: web.Request, picture: Picture, *, accel_prefix: str = "") -> web.StreamResponse:
    """With `accel_prefix` what is large is left to a proxy, which knows the file under that path.

    Raises `storage-unavailable`, and FileChanged.
    """
    headers = {**picture.headers, "Cache-Control": picture.caching.header(time.time())}
    if _is_known(request, picture):
        del headers["Content-Type"]
        return web.Response(status=304, headers=headers)
    try:
        part = _part(request, picture)
    except ServiceError as error:
        varies = {"Vary": picture.headers["Vary"]} if "Vary" in picture.headers else {}
        return envelope.error(error, {"Content-Range": f"bytes */{picture.stored.size}", **varies})
    data = picture.stored.data
    # nginx does not take over a Content-Encoding.
    if data is None and accel_prefix and "Content-Encoding" not in headers:
        del headers["Accept-Ranges"]  # the proxy adds it, and cuts the part out
        headers["X-Accel-Redirect"] = accel_prefix + picture.accel_path
        return web.Response(headers=headers)
    status = 200
    if part is None:
        part = Part(0, picture.stored.size)
    else:
        status = 206
        headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{picture.stored.size}"
    if data is not None:
        return web.Response(
            status=status, headers=headers, body=data if status == 200 else data[part.start : part.stop]
        )
    with storage_errors(None):  # one file, which may be gone meanwhile
        file = await in_thread(picture.threads, partial(_open, picture.stored))
    return FileAnswer(file, part, status, headers, picture.threads)


def _open(stored: StoredFile) -> BinaryIO:
    """Blocks; raises OSError and FileChanged."""
    try:
        file = stored.path.open("rb", buffering=0)
    except FileNotFoundError as error:
        raise FileChanged from error
    status = os.fstat(file.fileno())
    if (status.st_size, status.st_mtime_ns) != (stored.size, stored.modified_ns):
        file.close()
        raise FileChanged
    return file


def _is_known(request: web.Request, picture: Picture) -> bool:
    """Whether the client has it already (RFC 9110, 13.2.2)."""
    if (etags := request.if_none_match) is not None:
        return any(etag.value in {picture.etag, "*"} for etag in etags)
    try:
        since = request.if_modified_since
    except OverflowError:  # a year of twenty digits
        return False
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
    match = _RANGE.fullmatch(request.headers["Range"])
    if match is None or match["first"] == match["last"] == "":
        return None
    size = picture.stored.size
    if match["first"] == "":  # so many at the end
        start, stop = max(0, size - int(match["last"])), size
    else:
        start = int(match["first"])
        stop = size if match["last"] == "" else int(match["last"]) + 1
        if start >= stop and match["last"]:
            return None
    if start >= min(stop, size):
        raise ServiceError("range-not-satisfiable")
    return Part(start, min(stop, size))


class FileAnswer(web.StreamResponse):
    """Bytes that go from the file to the connection inside the system (sendfile), in a thread, since the disk may be
    slow; uvloop's transports have no way to do that, so it is done on a copy of the connection's descriptor while the
    transport has nothing to write.

    `on_end` hears once of its end: of the last byte that the system took, or of what kept it from that.
    """

    on_end: Callable[[SendingEnd], None] | None = None

    def __init__(self, file: BinaryIO, part: Part, status: int, headers: Mapping[str, str], threads: Executor) -> None:
        super().__init__(status=status, headers=headers)
        self.content_length = part.stop - part.start
        self._file = file
        self._part = part
        self._threads = threads

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        try:
            writer = await super().prepare(request)
            if writer is not None and request.method != "HEAD":
                await writer.drain()  # this returns when the system has taken the headers
                await self._send(request)
        except _FileFailed as error:
            self._end(SendingEnd(503, "storage-unavailable", error.__cause__))
            raise
        except BaseException:  # cancelled too
            self._end(SendingEnd(CLIENT_LEFT))
            raise
        else:
            self._end(SendingEnd(self.status))
            return writer
        finally:
            self._file.close()

    def _end(self, end: SendingEnd) -> None:
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            on_end(end)

    async def _send(self, request: web.BaseRequest) -> None:
        if request.transport is None:
            raise ConnectionResetError("the client has left")
        connection = os.dup(request.transport.get_extra_info("socket").fileno())
        try:
            at, pace = self._part.start, Pace(UNREAD_S)
            while at < self._part.stop:
                count = min(self._part.stop - at, _PIECE_BYTES)
                sent = await in_thread(self._threads, partial(_sendfile, connection, self._file.fileno(), at, count))
                if sent is None:
                    await _until_writable(connection, at - self._part.start, pace)
                    if _is_gone(request):
                        raise ConnectionResetError("the client has left")
                else:
                    at += sent
        finally:
            os.close(connection)


def _is_gone(request: web.BaseRequest) -> bool:
    return request.transport is None or request.transport.is_closing()


def _sendfile(connection: int, file: int, offset: int, count: int) -> int | None:
    """None where the connection takes nothing now. Raises _FileFailed, and ConnectionResetError."""
    try:
        sent = os.sendfile(connection, file, offset, count)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno in _OF_CONNECTION:
            raise ConnectionResetError("the client has left") from error
        raise _FileFailed("the file cannot be read") from error
    if sent == 0:
        raise _FileFailed("the file is shorter") from OSError(errno.ENODATA, "it is shorter than it was")
    return sent


async def _until_writable(connection: int, sent: int, pace: Pace) -> None:
    """Raises ConnectionResetError for a client that takes nothing for too long, or is slower than the least pace. Until
    then one that takes a little is waited for: the system wants a good part of what it holds to be gone before it takes
    more. `sent` are the bytes that the system took, `pace` counts those that the client did.
    """
    loop = asyncio.get_running_loop()
    writable = asyncio.Event()
    loop.add_writer(connection, writable.set)
    try:
        unread, moved_at = count_unconfirmed(connection), loop.time()
        while not writable.is_set():
            pace.begin_wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(pace.left_s, UNREAD_S / LOOKS)):
                    await writable.wait()
            before, unread = unread, count_unconfirmed(connection)
            pace.end_wait(max(0, sent - unread - pace.size))
            if unread < before:
                moved_at = loop.time()
            if not writable.is_set() and (loop.time() - moved_at >= UNREAD_S or pace.left_s == 0):
                raise ConnectionResetError("the client takes nothing, or too slowly")
    finally:
        loop.remove_writer(connection)
