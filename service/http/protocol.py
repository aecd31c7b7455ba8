"""aiohttp's connection handler, with the envelope for what its parser refuses.

The parser refuses lower-case methods, bad characters and long lines before any middleware runs, with a plain-text 400
that quotes the request line, key included, and a log line that does so too. Everything here leans on names that are
private to aiohttp 3.14; tests/integration/http/test_protocol.py and tests/integration/http/test_framing.py hold them.
"""

from __future__ import annotations

import asyncio
import fcntl
import re
import socket
import struct
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias, cast

import structlog
from aiohttp import StreamReader, web
from aiohttp.http_exceptions import BadHttpMessage, HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler, RequestPayloadError, _ErrInfo
from aiohttp.web_server import Server

from service.errors import ServiceError
from service.http import cors, envelope, framing
from service.limits.pace import Pace
from service.shared_memory.connection_counts import ConnectionCounts
from service.telemetry.metrics import metrics

log = structlog.get_logger("service.api")

QuickAnswer: TypeAlias = Callable[[web.BaseRequest], bytes | None]
QUICK_ANSWER: web.AppKey[QuickAnswer] = web.AppKey("quick_answer")

_LOOK_S = 0.05
# For so long a client may take nothing of an answer. It is looked at several times meanwhile, to end soon after.
UNREAD_S = 30
LOOKS = 6
# After the last answer of a connection whose client may still be sending: what is read and dropped, and for how long.
# A connection that is closed with bytes unread is reset, and the client may lose the answer (RFC 9112, section 9.6).
# Go's net/http has the same bound of bytes.
MAX_DROPPED_BYTES = 256 * 1024
LINGER_S = 2.0
# Of a chunked body that are parsed before others are served. aiohttp's own bound follows from bytes, and 200 bodies in
# chunks of a byte each would make everyone else wait for seconds. Chunks of 512 bytes and more never come to it.
MAX_CHUNKS_AT_ONCE = 256

# Bounded, so that it costs nothing on a stream of letters.
_METHOD = re.compile(rb"[A-Za-z]{1,16}(?= (?:/|https?://))")


def count_unconfirmed(connection: int) -> int:
    """Bytes that wait in the system for the other side to confirm them; 0 where it does not tell."""
    waiting = bytes(struct.calcsize("i"))
    with suppress(OSError):
        waiting = fcntl.ioctl(connection, termios.TIOCOUTQ, waiting)
    return int(struct.unpack("i", waiting)[0])


class HttpConnection(RequestHandler):
    """Bodies are taken as they are sent: a compressed one is never inflated here.

    `_is_last` is set when no request may follow those that were received. What arrives behind them is dropped, and the
    last answer closes the connection.
    """

    __slots__ = (
        "_body",
        "_connection",
        "_dropped",
        "_head_begun",
        "_is_last",
        "_lingering",
        "_next_look",
        "_resuming",
        "_unread_s",
    )

    def __init__(self, manager: Server, *, unread_timeout: float = UNREAD_S, **options: Any) -> None:
        super().__init__(manager, auto_decompress=False, lingering_time=0, **options)
        self._body: StreamReader = EMPTY_PAYLOAD
        self._head_begun = False
        self._is_last = False
        self._dropped = 0
        self._lingering: asyncio.Event | None = None
        self._resuming: asyncio.Handle | None = None
        self._connection: asyncio.Transport | None = None  # aiohttp forgets its own before all is sent
        self._next_look: asyncio.TimerHandle | None = None
        self._unread_s = unread_timeout

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connection = cast("asyncio.Transport", transport)
        # Writing is paused from the first byte that the system does not take: so one answer at most waits for its
        # client, and whatever waits is watched.
        self._connection.set_write_buffer_limits(high=0)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_looking()
        self._connection = None
        if self._resuming is not None:
            self._resuming.cancel()
        if self._lingering is not None:
            self._lingering.set()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        pace = Pace(self._unread_s)
        pace.begin_wait()
        self._look_again(self._count_unread(), self._loop.time(), pace)

    def resume_writing(self) -> None:
        self._stop_looking()
        super().resume_writing()

    def _look_again(self, unread: int, moved_at: float, pace: Pace) -> None:
        self._next_look = self._loop.call_later(self._unread_s / LOOKS, self._look, unread, moved_at, pace)

    def _stop_looking(self) -> None:
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None

    def _look(self, before: int, moved_at: float, pace: Pace) -> None:
        """End the connection of a client that has taken nothing for too long, or is slower than the least pace; `close`
        would wait for it for ever.
        """
        unread, now = self._count_unread(), self._loop.time()
        if unread < before:
            moved_at = now
            pace.end_wait(before - unread)
            pace.begin_wait()
        if now - moved_at < self._unread_s and pace.left_s > 0:
            self._look_again(unread, moved_at, pace)
        else:
            log.info("connection.write_stalled", bytes=unread)
            self.abort()

    def _count_unread(self) -> int:
        """Bytes that wait here, or in the system for the other side to confirm them, where it tells."""
        assert self._connection is not None  # noqa: S101 - there is one to be paused
        connection = self._connection.get_extra_info("socket").fileno()
        return self._connection.get_write_buffer_size() + count_unconfirmed(connection)

    def abort(self) -> None:
        """Its request is cancelled, as where the client has left, and the system drops what it holds of the answer."""
        if self._connection is not None:
            with suppress(OSError):
                linger = struct.pack("ii", 1, 0)
                self._connection.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._connection.abort()

    def data_received(self, data: bytes) -> None:
        """Upper-case the method of a request (the API's samples have `curl -X get`), never a byte of a body."""
        body, requests = self._body, self._request_count
        # Told by what has arrived and not by what is done about it, which lags behind: the first bytes may be here
        # before the task that handles the connection has begun.
        in_body = not body.is_eof()
        if self._lingering is not None or (self._is_last and not in_body):
            self._drop(data)
            return
        if not in_body and not self._head_begun and (method := _METHOD.match(data)) and not method[0].isupper():
            data = method[0].upper() + data[method.end() :]
        super().data_received(data)
        if data:  # aiohttp calls this with nothing to go on after a pause
            self._head_begun = not in_body and self._request_count == requests
        if self._request_count > requests:
            message, self._body = self._messages[-1]
            count = self._request_count - requests
            if count > 1 or isinstance(message, _ErrInfo) or not framing.is_plain(message, self._body):
                self._check_framing(count)
                message, self._body = self._messages[-1]
            if isinstance(message, _ErrInfo) and not body.is_eof():
                # A body that breaks its own framing: aiohttp would let its reader wait for the rest.
                body.set_exception(RequestPayloadError("malformed body"))
                self._messages.pop()  # the reader of the body answers
            elif not isinstance(message, _ErrInfo) and message.chunked:
                self._body._high_water_chunks = MAX_CHUNKS_AT_ONCE
                self._body._low_water_chunks = MAX_CHUNKS_AT_ONCE // 2

    def _check_framing(self, count: int) -> None:
        """Look at the last `count` messages. None may follow one that is refused, or that asks for another protocol,
        which may have begun behind it (RFC 9110, section 7.8); the parser drops what it holds there.
        """
        for place in range(-count, 0):
            message, payload = self._messages[place]
            if isinstance(message, _ErrInfo) or message.upgrade:  # as for CONNECT
                self._is_last = True
            elif (fault := framing.find_fault(message, payload)) is not None:
                self._messages[place] = (_ErrInfo(400, BadHttpMessage(fault), fault), EMPTY_PAYLOAD)
                self._is_last = True
            if self._is_last:
                for _ in range(place + 1, 0):
                    self._messages.pop()
                self._message_tail = b""  # aiohttp would parse it
                return

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Go on in the next turn of the loop. aiohttp parses the next piece of what has arrived within the read of the
        one before, so that a body in thousands of tiny chunks holds everyone up.
        """
        if not resume_parser:
            super().resume_reading(resume_parser)
        elif self._resuming is None:
            self._resuming = self._loop.call_soon(self._resume_reading)

    def _resume_reading(self) -> None:
        self._resuming = None
        if self._parser is not None:  # else the connection is lost
            super().resume_reading()

    def _drop(self, data: bytes) -> None:
        self._dropped += len(data)
        if self._dropped > MAX_DROPPED_BYTES:
            self._pause_transport_reading()

    async def _linger(self) -> None:
        """Say that no answer follows, and give the client a while to read the last one before the connection closes."""
        if self.transport is None or self.transport.is_closing():
            return
        self._lingering = asyncio.Event()
        self._messages.clear()
        with suppress(OSError):  # the client has left, and nobody has heard of it yet
            self.transport.write_eof()
        if self._dropped <= MAX_DROPPED_BYTES:
            self._resume_transport_reading()
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                await self._lingering.wait()

    def is_busy(self) -> bool:
        """Also while an answer is sent, by whatever way: for aiohttp there is no current request any more."""
        return self._request_in_progress or bool(self._messages) or self.writing_paused

    async def _handle_request(
        self, request: web.BaseRequest, start_time: float | None, request_handler: Any
    ) -> tuple[web.StreamResponse, bool]:
        server = self._manager
        if isinstance(server, DrainingServer) and server.quick is not None and not (server.draining or self._is_last):
            answer = server.quick(request)
            if answer is not None:
                return await self._answer_quickly(request, answer)
        if request.headers.get("Expect", "100-continue").lower() != "100-continue":
            request_handler = _refuse_expectation  # else aiohttp answers it before any middleware, as plain text
        response, is_over = await super()._handle_request(request, start_time, request_handler)
        if not is_over and self._is_last and not self._messages:
            await self._linger()
            is_over = True
        return response, is_over

    async def _answer_quickly(self, request: web.BaseRequest, answer: bytes) -> tuple[web.StreamResponse, bool]:
        """All that aiohttp does for a prepared response."""
        request._finish()
        if self.transport is None or self.transport.is_closing():
            return _ANSWERED, True
        self.transport.write(answer)
        if self._paused:
            await self._drain_helper()
        return _ANSWERED, False

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        resp.headers["Server"] = "Daguerre"  # aiohttp's own names the versions of what it runs on
        if not request.content.is_eof():
            self._is_last = True  # the rest of a body must not be taken for a request
        is_draining = isinstance(self._manager, DrainingServer) and self._manager.draining
        if is_draining or (self._is_last and not self._messages):
            resp.force_close()
        return await super().finish_response(request, resp, start_time)

    def log_exception(self, *args: Any, **options: Any) -> None:
        """A body that breaks its own framing or encoding is the client's, also where aiohttp only reads past it."""
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
        """The envelope, closing the connection; neither answer nor log line quotes the request."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun")
        if isinstance(exc, ConnectionError):
            log.info("request.aborted", error=type(exc).__name__)
            raise exc
        code = "bad-request" if status < 500 else "internal"
        if code == "internal":
            log.error("request.failed", exc_info=exc)
        else:
            log.info("request.refused", error=type(exc).__name__)
        answer = _refuse(request, code)
        answer.force_close()
        return answer


# For the one thing that aiohttp asks of an answer that has gone: its connection stays open.
_ANSWERED = web.StreamResponse()
_ANSWERED._keep_alive = True


async def _refuse_expectation(request: web.BaseRequest) -> web.StreamResponse:
    return _refuse(request, "expectation-failed")


def _refuse(request: web.BaseRequest, code: str) -> web.Response:
    """What the application's middleware and signals never see."""
    metrics.count_refusal(request.method, code)
    answer = envelope.error(ServiceError(code))
    cors.allow(answer.headers)
    return answer


class DrainingServer(Server):
    """Makes the connections, and lets their requests finish before they are closed.

    Whoever counts in `counts` what it accepts finds those that were lost subtracted there. `quick` is asked first for
    the whole answer to a request.
    """

    draining = False
    quick: QuickAnswer | None = None
    counts: ConnectionCounts | None = None

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        if self.counts is not None:
            self.counts.add(-1)

    def __call__(self) -> RequestHandler:
        return HttpConnection(self, loop=self._loop, **self._kwargs)

    def count_under_way(self) -> int:
        return sum(connection.is_busy() for connection in self.connections if isinstance(connection, HttpConnection))

    async def drain(self, *, linger_s: float, timeout_s: float) -> None:
        """Wait for the requests under way, up to `timeout_s`. aiohttp's own shutdown comes too early for them: it
        drops the rest of a body that is still arriving.

        Idle connections stay for `linger_s`, since a request may be on its way; each answer closes its connection.
        """
        self.draining = True
        deadline = time.monotonic() + timeout_s
        await asyncio.sleep(linger_s)
        while self.count_under_way() and time.monotonic() < deadline:  # noqa: ASYNC110 - nothing tells of an end
            await asyncio.sleep(_LOOK_S)
        for connection in self.connections:
            if isinstance(connection, HttpConnection) and connection.writing_paused:
                connection.abort()  # aiohttp would wait for what its client does not read


class Runner(web.AppRunner):
    """Serves an application through `HttpConnection`."""

    async def _make_server(self) -> Server:
        made = await super()._make_server()
        server = DrainingServer(made.request_handler, request_factory=made.request_factory, **made._kwargs)
        server.quick = self.app.get(QUICK_ANSWER)
        return server

    @property
    def draining_server(self) -> DrainingServer:
        assert isinstance(self.server, DrainingServer)  # noqa: S101 - what _make_server made
        return self.server
