"""A stored file as a response: conditional, in part, from memory or straight from the file."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from service.errors import ServiceError
from service.http.server import ERROR_RESPONSE
from service.http.write_stalls import WRITE_STALL_TIMEOUT_S, wait_writable
from service.limits.slots import Pace
from service.storage.files import in_thread, storage_errors
from service.telemetry.requests import CLIENT_DISCONNECTED

# The kernel usually sends less in one call; this bounds how much one client gets before the others.
_MAX_SENDFILE_BYTES = 1 << 20
# Errors of sendfile that concern the connection; all others concern the file.
_CONNECTION_ERRORS = frozenset(
    {errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENOTCONN}
)
_RANGE = re.compile(r"bytes=(?P<first>[0-9]{0,20})-(?P<last>[0-9]{0,20})", re.IGNORECASE)


class StoredFile(Protocol):
    """A file as it was when it was looked up. `data` is its content if that is in memory."""

    @property
    def path(self) -> Path: ...
    @property
    def size(self) -> int: ...
    @property
    def modified_ns(self) -> int: ...
    @property
    def data(self) -> bytes | None: ...


class CacheControl(Protocol):
    """Returns the Cache-Control header of a response at this Unix time."""

    def header(self, now: float) -> str: ...


class ServedFile(Protocol):
    """A stored file with the headers of its responses, apart from Cache-Control.

    `etag` is one of the headers, without its quotes. `accel_path` is the file's path below the internal locations of a
    proxy. `threads` are those of the file's disk.
    """

    @property
    def stored(self) -> StoredFile: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def caching(self) -> CacheControl: ...
    @property
    def etag(self) -> str: ...
    @property
    def modified_s(self) -> int: ...
    @property
    def accel_path(self) -> str: ...
    @property
    def threads(self) -> Executor: ...


class _FileReadError(ConnectionError):
    """The file cannot be read to its end, after the head of the response was sent.

    The connection must be closed then. aiohttp does so for a ConnectionError, without a traceback.
    """


class FileChanged(Exception):
    """The file was removed, moved or replaced after it was looked up; it has to be looked up again."""


class SendResult(NamedTuple):
    """How a response ended. `status` is CLIENT_DISCONNECTED if the client disconnected before the last byte. `code` is
    that of an error after the head was sent.
    """

    status: int
    code: str | None = None
    cause: BaseException | None = None


class ByteRange(NamedTuple):
    """The bytes from `start` until before `stop`."""

    start: int
    stop: int


async def file_response(request: web.Request, file: ServedFile, *, accel_prefix: str = "") -> web.StreamResponse:
    """Returns the response to GET or HEAD: 200, 206, 304 or 416.

    With `accel_prefix`, the proxy sends a file that is not in memory, from that path. Raises `storage-unavailable`, and
    FileChanged.
    """
    headers = {**file.headers, "Cache-Control": file.caching.header(time.time())}
    if _is_not_modified(request, file):
        del headers["Content-Type"]
        return web.Response(status=304, headers=headers)
    try:
        byte_range = _parse_range(request, file)
    except ServiceError as error:
        varies = {"Vary": file.headers["Vary"]} if "Vary" in file.headers else {}
        return request.app[ERROR_RESPONSE](error, {"Content-Range": f"bytes */{file.stored.size}", **varies})
    data = file.stored.data
    # nginx drops the Content-Encoding of such a response.
    if data is None and accel_prefix and "Content-Encoding" not in headers:
        del headers["Accept-Ranges"]  # the proxy adds it, and handles the range
        headers["X-Accel-Redirect"] = accel_prefix + file.accel_path
        return web.Response(headers=headers)
    status = 200
    if byte_range is None:
        byte_range = ByteRange(0, file.stored.size)
    else:
        status = 206
        headers["Content-Range"] = f"bytes {byte_range.start}-{byte_range.stop - 1}/{file.stored.size}"
    if data is not None:
        body = data if status == 200 else data[byte_range.start : byte_range.stop]
        return web.Response(status=status, headers=headers, body=body)
    with storage_errors(None):  # one file, which may have been removed
        handle = await in_thread(file.threads, partial(_open, file.stored))
    return SendfileResponse(handle, byte_range, status, headers, file.threads)


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


def _is_not_modified(request: web.Request, file: ServedFile) -> bool:
    """Returns whether the client has the current file (RFC 9110, section 13.2.2)."""
    if (etags := request.if_none_match) is not None:
        return any(etag.value in {file.etag, "*"} for etag in etags)
    try:
        since = request.if_modified_since
    except OverflowError:  # a year with twenty digits
        return False
    return since is not None and file.modified_s <= since.timestamp()


def _parse_range(request: web.Request, file: ServedFile) -> ByteRange | None:
    """Returns the requested range, or None for the whole file: without a Range, with several or an invalid one, or if
    If-Range names another version of the file. Raises `range-not-satisfiable`.
    """
    if "Range" not in request.headers or request.method != "GET":
        return None
    condition = request.headers.get("If-Range")
    if condition is not None and condition not in {f'"{file.etag}"', file.headers.get("Last-Modified")}:
        return None
    match = _RANGE.fullmatch(request.headers["Range"])
    if match is None or match["first"] == match["last"] == "":
        return None
    size = file.stored.size
    if match["first"] == "":  # the last bytes, by their number
        start, stop = max(0, size - int(match["last"])), size
    else:
        start = int(match["first"])
        stop = size if match["last"] == "" else int(match["last"]) + 1
        if start >= stop and match["last"]:
            return None
    if start >= min(stop, size):
        raise ServiceError("range-not-satisfiable")
    return ByteRange(start, min(stop, size))


class SendfileResponse(web.StreamResponse):
    """Sends a file with sendfile(2) in a thread, because the disk may be slow.

    uvloop's transports have no sendfile. So it is called on a duplicate of the connection's descriptor while the
    transport has nothing to write.

    `on_end` is called once: when the kernel has accepted the last byte, or on an error before that.
    """

    on_end: Callable[[SendResult], None] | None = None

    def __init__(
        self,
        file: BinaryIO,
        byte_range: ByteRange,
        status: int,
        headers: Mapping[str, str],
        threads: Executor,
        *,
        write_stall_timeout_s: float = WRITE_STALL_TIMEOUT_S,
    ) -> None:
        super().__init__(status=status, headers=headers)
        self.content_length = byte_range.stop - byte_range.start
        self._file = file
        self._byte_range = byte_range
        self._threads = threads
        self._write_stall_timeout_s = write_stall_timeout_s

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        try:
            writer = await super().prepare(request)
            if writer is not None and request.method != "HEAD":
                await writer.drain()  # returns when the kernel has accepted the headers
                await self._send(request)
        except _FileReadError as error:
            self._end(SendResult(503, "storage-unavailable", error.__cause__))
            raise
        except BaseException:  # e.g. cancelled
            self._end(SendResult(CLIENT_DISCONNECTED))
            raise
        else:
            self._end(SendResult(self.status))
            return writer
        finally:
            self._file.close()

    def _end(self, result: SendResult) -> None:
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            on_end(result)

    async def _send(self, request: web.BaseRequest) -> None:
        if request.transport is None:
            raise ConnectionResetError("the client has left")
        connection = os.dup(request.transport.get_extra_info("socket").fileno())
        try:
            start, stop = self._byte_range
            offset, pace = start, Pace(self._write_stall_timeout_s)
            while offset < stop:
                count = min(stop - offset, _MAX_SENDFILE_BYTES)
                sent = await in_thread(
                    self._threads, partial(_sendfile, connection, self._file.fileno(), offset, count)
                )
                if sent is None:
                    await wait_writable(connection, offset - start, pace, self._write_stall_timeout_s)
                    if _is_closing(request):
                        raise ConnectionResetError("the client has left")
                else:
                    offset += sent
        finally:
            os.close(connection)


def _is_closing(request: web.BaseRequest) -> bool:
    return request.transport is None or request.transport.is_closing()


def _sendfile(connection: int, file: int, offset: int, count: int) -> int | None:
    """Returns the number of bytes that were sent, or None if the connection is not writable now.

    Raises _FileReadError, and ConnectionResetError.
    """
    try:
        sent = os.sendfile(connection, file, offset, count)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno in _CONNECTION_ERRORS:
            raise ConnectionResetError("the client has left") from error
        raise _FileReadError("the file cannot be read") from error
    if sent == 0:
        raise _FileReadError("the file is shorter") from OSError(errno.ENODATA, "it is shorter than it was")
    return sent
