"""Takes connections from the listening socket that all API processes share."""

from __future__ import annotations

import asyncio
import errno
import math
import socket
from collections.abc import Callable

import structlog

from service.shared_memory.connection_counts import ConnectionCounts

log = structlog.get_logger("service.api")

# A process that is ahead of another leaves it so long to take a connection, then takes it itself.
_YIELD_S = 0.001
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_EXHAUSTED_PAUSE_S = 1
_FULL_PAUSE_S = 0.1
_TELL_AGAIN_S = 60


class Acceptor:
    """Takes one connection at a time, for as long as the block lasts; counts it in `counts`.

    Its end takes those that wait. All that were taken are with their protocols after the block.

    An event loop's own server takes all that wait at once, whatever the other processes hold. While it holds `most`
    it takes none, so that files and the database can still be opened.
    """

    def __init__(
        self,
        listener: socket.socket,
        make_connection: Callable[[], asyncio.Protocol],
        counts: ConnectionCounts,
        *,
        most: int,
    ) -> None:
        self._listener = listener
        self._make_connection = make_connection
        self._counts = counts
        self._most = most
        self._told_at: dict[str, float] = {}
        self._loop = asyncio.get_running_loop()
        self._resume: asyncio.TimerHandle | None = None
        self._opening: set[asyncio.Task[object]] = set()

    async def __aenter__(self) -> None:
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener, self._accept_in_turn)

    async def __aexit__(self, *_: object) -> None:
        self._loop.remove_reader(self._listener)
        # Clients that wait would be reset, where no other process goes on with the socket.
        while self._counts.held < self._most and self._take():
            pass
        if self._resume is not None:
            self._resume.cancel()
        self._listener.close()
        if self._opening:
            await asyncio.wait(self._opening)

    def _accept_in_turn(self) -> None:
        if self._counts.is_ahead():
            self._pause(_YIELD_S)
        else:
            self._accept()

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._resume = self._loop.call_later(seconds, self._accept_and_go_on)

    def _accept_and_go_on(self) -> None:
        self._loop.add_reader(self._listener, self._accept_in_turn)
        self._accept()

    def _accept(self) -> None:
        if self._counts.held >= self._most:
            self._tell("api.connection_limit_reached", connections=self._counts.held)
            self._pause(_FULL_PAUSE_S)
            return
        self._take()

    def _take(self) -> bool:
        """Whether there was one to take."""
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            if error.errno in _EXHAUSTED:
                self._tell("api.accept_failed", error=repr(error))
                self._pause(_EXHAUSTED_PAUSE_S)
            return False  # else another process took it, or the client has gone
        self._counts.add(1)
        opening = self._loop.create_task(self._open(connection))
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)
        return True

    def _tell(self, event: str, **fields: object) -> None:
        now = self._loop.time()
        if now - self._told_at.get(event, -math.inf) > _TELL_AGAIN_S:
            self._told_at[event] = now
            log.warning(event, **fields)

    async def _open(self, connection: socket.socket) -> None:
        try:
            connection.setblocking(False)
            await self._loop.connect_accepted_socket(self._make_connection, connection)
        except Exception as error:
            connection.close()
            self._counts.add(-1)  # there is no protocol whose end would do that
            if not isinstance(error, OSError):  # else the client has gone
                log.exception("api.connection_failed")
