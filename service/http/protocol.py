"""The protocol of one HTTP connection: aiohttp's, with its own limits, error responses and shutdown.

aiohttp's parser refuses lower-case methods, bad characters and long lines before any middleware runs. It responds with
a plain-text 400 that quotes the request line, including the API key, and logs it too. Here such a request gets the
API's error body. This module overrides names that are private to aiohttp 3.14; tests/integration/http/test_protocol.py
and tests/integration/http/test_framing.py test their behaviour.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, cast

import structlog
from aiohttp import HttpVersion10, HttpVersion11, StreamReader, web
from aiohttp.hdrs import CONTENT_LENGTH, TRANSFER_ENCODING
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import BadHttpMessage, HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler, RequestPayloadError, _ErrInfo
from aiohttp.web_server import Server

from service.errors import ServiceError
from service.http.write_stalls import WRITE_STALL_TIMEOUT_S, WriteStallWatch
from service.telemetry.metrics import metrics

log = structlog.get_logger("service.api")

# Creates an error response with additional headers.
ErrorResponse: TypeAlias = Callable[[ServiceError, Mapping[str, str] | None], web.Response]


class Shortcut(Protocol):
    """Responds to some GETs under `prefix` without the application.

    `respond` returns the whole response, head included, or None if the request needs the application.
    """

    prefix: str

    def respond(self, request: web.BaseRequest) -> bytes | None: ...


# After the last response of a connection whose client may still be sending, incoming bytes are dropped for a while: a
# connection that is closed with unread bytes is reset, and the client may lose the response (RFC 9112, section 9.6).
# Go's net/http has the same byte limit.
MAX_DROPPED_BYTES = 256 * 1024
LINGER_S = 2.0
# The chunks of a body that are parsed in one turn of the event loop. aiohttp's own limit counts bytes, and 200 bodies
# in chunks of one byte would block the loop for seconds. Chunks of 512 bytes and more never reach this bound.
MAX_CHUNKS_PER_TURN = 256

# Bounded, so that a long run of letters costs nothing.
_METHOD = re.compile(rb"[A-Za-z]{1,16}(?= (?:/|https?://))")


@dataclass(slots=True)
class ServerState:
    """The state that all connections of a server share. While `draining`, each response closes its connection."""

    error_response: ErrorResponse
    shortcut: Shortcut | None = None
    draining: bool = False


class HttpConnection(RequestHandler):
    """A connection that passes bodies on unchanged: it never decompresses one.

    `_is_last` is set if no further request is accepted. Later bytes are dropped, and the last response closes the
    connection.
    """

    __slots__ = (
        "_body",
        "_client",
        "_dropped_bytes",
        "_head_started",
        "_is_last",
        "_lingering",
        "_resuming",
        "_state",
        "_write_stall_timeout_s",
        "_write_stall_watch",
    )

    def __init__(
        self,
        manager: Server,
        state: ServerState,
        *,
        write_stall_timeout_s: float = WRITE_STALL_TIMEOUT_S,
        **options: Any,
    ) -> None:
        super().__init__(manager, auto_decompress=False, lingering_time=0, **options)
        self._state = state
        self._body: StreamReader = EMPTY_PAYLOAD
        self._head_started = False
        self._is_last = False
        self._dropped_bytes = 0
        self._lingering: asyncio.Event | None = None
        self._resuming: asyncio.Handle | None = None
        self._client: asyncio.Transport | None = None  # aiohttp drops its own reference before everything is sent
        self._write_stall_timeout_s = write_stall_timeout_s
        self._write_stall_watch: WriteStallWatch | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._client = cast("asyncio.Transport", transport)
        # Writing pauses at the first byte that the kernel does not take: at most one response is buffered here, and a
        # buffered response is always watched.
        self._client.set_write_buffer_limits(high=0)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_watching()
        self._client = None
        if self._resuming is not None:
            self._resuming.cancel()
        if self._lingering is not None:
            self._lingering.set()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        assert self._client is not None  # noqa: S101 - the transport that pauses
        self._write_stall_watch = WriteStallWatch(self._client, self._write_stall_timeout_s, self._end_stalled)
        self._write_stall_watch.start()

    def resume_writing(self) -> None:
        self._stop_watching()
        super().resume_writing()

    def _stop_watching(self) -> None:
        if self._write_stall_watch is not None:
            self._write_stall_watch.stop()
            self._write_stall_watch = None

    def _end_stalled(self, unsent: int) -> None:
        log.info("connection.write_stalled", bytes=unsent)
        self.abort()

    def abort(self) -> None:
        """Cancels the request, as if the client had disconnected, and resets the connection without sending the
        rest.
        """
        if self._client is not None:
            with suppress(OSError):
                linger = struct.pack("ii", 1, 0)
                self._client.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._client.abort()

    def data_received(self, data: bytes) -> None:
        """Upper-cases the method of a request (the API's samples have `curl -X get`), but never a byte of a body."""
        body, requests = self._body, self._request_count
        # This depends on the bytes that have arrived, not on the task that handles the connection, which may not have
        # started when the first bytes arrive.
        in_body = not body.is_eof()
        if self._lingering is not None or (self._is_last and not in_body):
            self._drop(data)
            return
        if not in_body and not self._head_started and (method := _METHOD.match(data)) and not method[0].isupper():
            data = method[0].upper() + data[method.end() :]
        super().data_received(data)
        if data:  # aiohttp calls this without data to resume after a pause
            self._head_started = not in_body and self._request_count == requests
        if self._request_count > requests:
            self._check_new_messages(body, self._request_count - requests)

    def _check_new_messages(self, previous_body: StreamReader, count: int) -> None:
        message, self._body = self._messages[-1]
        if count > 1 or isinstance(message, _ErrInfo) or not is_plain(message, self._body):
            self._check_framing(count)
            message, self._body = self._messages[-1]
        if isinstance(message, _ErrInfo) and not previous_body.is_eof():
            # A body that breaks its own framing: aiohttp would let its reader wait for the rest.
            previous_body.set_exception(RequestPayloadError("malformed body"))
            self._messages.pop()  # the reader of the body sends the error
        elif not isinstance(message, _ErrInfo) and message.chunked:
            self._body._high_water_chunks = MAX_CHUNKS_PER_TURN
            self._body._low_water_chunks = MAX_CHUNKS_PER_TURN // 2

    def _check_framing(self, count: int) -> None:
        """Checks the last `count` messages.

        No message may follow one that is refused, or one that requests an upgrade, after which the other protocol may
        start (RFC 9110, section 7.8). Such messages are dropped, and so are the bytes that the parser buffers.
        """
        for index in range(-count, 0):
            message, payload = self._messages[index]
            if isinstance(message, _ErrInfo) or message.upgrade:  # as for CONNECT
                self._is_last = True
            elif (fault := find_framing_error(message, payload)) is not None:
                self._messages[index] = (_ErrInfo(400, BadHttpMessage(fault), fault), EMPTY_PAYLOAD)
                self._is_last = True
            if self._is_last:
                for _ in range(index + 1, 0):
                    self._messages.pop()
                self._message_tail = b""  # aiohttp would parse it
                return

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Resumes in the next iteration of the event loop.

        aiohttp would parse the next received bytes within the read of the previous ones, so that a body in thousands of
        tiny chunks would block the loop.
        """
        if not resume_parser:
            super().resume_reading(resume_parser)
        elif self._resuming is None:
            self._resuming = self._loop.call_soon(self._resume_reading)

    def _resume_reading(self) -> None:
        self._resuming = None
        if self._parser is not None:  # otherwise the connection is lost
            super().resume_reading()

    def _drop(self, data: bytes) -> None:
        self._dropped_bytes += len(data)
        if self._dropped_bytes > MAX_DROPPED_BYTES:
            self._pause_transport_reading()

    async def _linger(self) -> None:
        """Half-closes the connection, and gives the client a while to read the last response."""
        if self.transport is None or self.transport.is_closing():
            return
        self._lingering = asyncio.Event()
        self._messages.clear()
        with suppress(OSError):  # the client has disconnected, and `connection_lost` was not called yet
            self.transport.write_eof()
        if self._dropped_bytes <= MAX_DROPPED_BYTES:
            self._resume_transport_reading()
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                await self._lingering.wait()

    def is_busy(self) -> bool:
        """Returns whether a request is in progress. aiohttp does not count a request whose response is being sent."""
        return self._request_in_progress or bool(self._messages) or self.writing_paused

    async def _handle_request(
        self, request: web.BaseRequest, start_time: float | None, request_handler: Any
    ) -> tuple[web.StreamResponse, bool]:
        state = self._state
        shortcut = state.shortcut
        if (
            shortcut is not None
            and request.raw_path.startswith(shortcut.prefix)
            and not (state.draining or self._is_last)
        ):
            data = shortcut.respond(request)
            if data is not None:
                return await self._write_response(request, data)
        if request.headers.get("Expect", "100-continue").lower() != "100-continue":
            request_handler = self._refuse_expectation  # aiohttp's own is plain text, and runs before any middleware
        response, is_over = await super()._handle_request(request, start_time, request_handler)
        if not is_over and self._is_last and not self._messages:
            await self._linger()
            is_over = True
        return response, is_over

    async def _write_response(self, request: web.BaseRequest, data: bytes) -> tuple[web.StreamResponse, bool]:
        """Does what aiohttp does for a prepared response."""
        request._finish()
        if self.transport is None or self.transport.is_closing():
            return _KEEP_ALIVE, True
        self.transport.write(data)
        if self._paused:
            await self._drain_helper()
        return _KEEP_ALIVE, False

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        resp.headers["Server"] = "Daguerre"  # aiohttp's own header shows the versions of its parts
        if not request.content.is_eof():
            self._is_last = True  # the rest of a body must not be taken for a request
        if self._state.draining or (self._is_last and not self._messages):
            resp.force_close()
        return await super().finish_response(request, resp, start_time)

    def log_exception(self, *args: Any, **options: Any) -> None:
        """Logs a body that breaks its own framing or encoding as the client's error, even if aiohttp only skips it."""
        error = options.get("exc_info")
        if isinstance(error, (HttpProcessingError, RequestPayloadError)):
            log.info("request.refused", error=type(error).__name__)
        else:
            super().log_exception(*args, **options)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002
    ) -> web.StreamResponse:
        """Returns the error response, which closes the connection. Neither response nor log line quotes the request."""
        if request.writer.output_size > 0:
            raise ConnectionError("the response has started")
        if isinstance(exc, ConnectionError):
            log.info("request.aborted", error=type(exc).__name__)
            raise exc
        code = "bad-request" if status < 500 else "internal"
        if code == "internal":
            log.error("request.failed", exc_info=exc)
        else:
            log.info("request.refused", error=type(exc).__name__)
        response = self._refuse(request, code)
        response.force_close()
        return response

    async def _refuse_expectation(self, request: web.BaseRequest) -> web.StreamResponse:
        return self._refuse(request, "expectation-failed")

    def _refuse(self, request: web.BaseRequest, code: str) -> web.Response:
        """Returns the response to a request that does not reach the application's middleware and signals."""
        metrics.requests.count_refusal(request.method, code)
        return self._state.error_response(ServiceError(code), None)


# Stands for a response that was already written. aiohttp only reads from it whether the connection stays open.
_KEEP_ALIVE = web.StreamResponse()
_KEEP_ALIVE._keep_alive = True


# Framing checks beyond those of aiohttp's parser. If a server and a proxy disagree about the end of a request, a part
# of one client's body is treated as the request of another (request smuggling; RFC 9112, section 11.2). So an ambiguous
# request is refused, and its connection closed.
_VERSIONS = (HttpVersion11, HttpVersion10)


def is_plain(message: RawRequestMessage, payload: StreamReader) -> bool:
    """Returns whether a head declares neither a body nor an upgrade, like most requests. Its framing is valid."""
    headers = message.headers
    return (
        payload is EMPTY_PAYLOAD
        and message.version is HttpVersion11
        and not message.upgrade
        and headers.get(TRANSFER_ENCODING) is None
        and headers.get(CONTENT_LENGTH) is None
    )


def find_framing_error(message: RawRequestMessage, payload: StreamReader) -> str | None:
    """Returns what is wrong with a head that the parser accepted, or None if it is valid.

    The only transfer coding is `chunked`, and HTTP/1.0 has none (RFC 9112, section 6.1).
    """
    version, headers = message.version, message.headers
    if version is not HttpVersion11 and version not in _VERSIONS:
        return "unsupported version"
    coding = headers.get(TRANSFER_ENCODING)
    if coding is not None:
        if version == HttpVersion10 or coding.lower() != "chunked":
            return "unsupported Transfer-Encoding"
    elif payload is EMPTY_PAYLOAD and headers.get(CONTENT_LENGTH, "").strip("0"):
        return "Content-Length out of range"  # the parser treats the largest 64-bit number as no length at all
    return None
