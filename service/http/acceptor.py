"""Accepts connections from the listening socket that all API processes share."""

from __future__ import annotations

import asyncio
import errno
import math
import socket
from collections.abc import Callable

import structlog

from service.shared_memory.connection_counts import ConnectionCounts

log = structlog.get_logger("service.api")

_YIELD_S = 0.001
# In one iteration of its event loop a process accepts 1 connection and an eighth of its number of open connections, but
# at most _MAX_BATCH together.
_BATCH_PART, _MAX_BATCH = 8, 64
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_EXHAUSTED_PAUSE_S = 1
_LIMIT_PAUSE_S = 0.1
_WARNING_INTERVAL_S = 60


class Acceptor:
    """Accepts connections until the block ends, and counts them in `counts`.

    The server of an event loop would accept all waiting connections at once, even if other processes have fewer. This
    one accepts one in each iteration, and more only in proportion to those that it has. One would be too few for
    thousands that arrive together: if the kernel's backlog stays full, it resets connections after half a minute. A
    process that is ahead of another waits `yield_s` for the other to accept a connection, then accepts it itself. At
    `max_connections` it accepts no more, so that descriptors remain for files and the database.

    On exit it accepts all waiting connections. After the block, every accepted connection has its protocol.
    """

    def __init__(
        self,
        listener: socket.socket,
        make_connection: Callable[[], asyncio.Protocol],
        counts: ConnectionCounts,
        *,
        max_connections: int,
        yield_s: float = _YIELD_S,
    ) -> None:
        self._listener = listener
        self._make_connection = make_connection
        self._counts = counts
        self._max_connections = max_connections
        self._yield_s = yield_s
        self._warned_at: dict[str, float] = {}
        self._loop = asyncio.get_running_loop()
        self._resume: asyncio.TimerHandle | None = None
        self._opening: set[asyncio.Task[object]] = set()

    async def __aenter__(self) -> None:
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener, self._accept_in_turn)

    async def __aexit__(self, *_: object) -> None:
        self._loop.remove_reader(self._listener)
        # Waiting clients would be reset if no other process uses the socket.
        while self._counts.held < self._max_connections and self._accept_one():
            pass
        if self._resume is not None:
            self._resume.cancel()
        self._listener.close()
        if self._opening:
            await asyncio.wait(self._opening)

    def _accept_in_turn(self) -> None:
        if self._counts.is_ahead():
            self._pause(self._yield_s)
        else:
            self._accept()

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._resume = self._loop.call_later(seconds, self._accept_after_pause)

    def _accept_after_pause(self) -> None:
        self._loop.add_reader(self._listener, self._accept_in_turn)
        self._accept()

    def _accept(self) -> None:
        for _ in range(min(1 + self._counts.held // _BATCH_PART, _MAX_BATCH)):
            if self._counts.held >= self._max_connections:
                self._warn("api.connection_limit_reached", connections=self._counts.held)
                self._pause(_LIMIT_PAUSE_S)
                break
            if not self._accept_one() or self._counts.is_ahead():
                break

    def _accept_one(self) -> bool:
        """Returns whether a connection was waiting."""
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            if error.errno in _EXHAUSTED:
                self._warn("api.accept_failed", error=repr(error))
                self._pause(_EXHAUSTED_PAUSE_S)
            return False  # another process accepted it, or the client has disconnected
        self._counts.add(1)
        opening = self._loop.create_task(self._open(connection))
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)
        return True

    def _warn(self, event: str, **fields: object) -> None:
        """Logs a warning, but each event at most once a minute."""
        now = self._loop.time()
        if now - self._warned_at.get(event, -math.inf) > _WARNING_INTERVAL_S:
            self._warned_at[event] = now
            log.warning(event, **fields)

    async def _open(self, connection: socket.socket) -> None:
        try:
            connection.setblocking(False)
            await self._loop.connect_accepted_socket(self._make_connection, connection)
        except Exception as error:
            connection.close()
            self._counts.add(-1)  # without a protocol, no `connection_lost` does it
            if not isinstance(error, OSError):  # otherwise the client has disconnected
                log.exception("api.connection_failed")
