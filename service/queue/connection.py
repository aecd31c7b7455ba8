"""Connections to Redis that pipeline: commands of several callers are on their way at once, without a pool, and without
a task or a time-out for each.

Every upload sends commands and waits for a reply, and the pool, tasks and time-outs of redis-py cost too much for that.
Here it only opens the connection, with all options of its URL (TLS, passwords, sockets, sentinels). It remains the
client for everything that is not done for each upload. `_writer` and `BaseParser` are private to redis-py, which is
pinned; tests/integration/queue/test_connection.py holds them.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import hiredis
from arq.connections import ArqRedis
from redis import exceptions as redis_errors
from redis._parsers.base import BaseParser
from redis.asyncio import ConnectionPool
from redis.exceptions import InvalidResponse, NoScriptError, ReadOnlyError, RedisError

_pack: Callable[[Command], bytes] = hiredis.pack_command  # type: ignore[assignment] # its stub is for one argument

# The maximum time until a reply. It detects a server that vanished without closing its connections.
REPLY_TIMEOUT_S = 5.0

Argument: TypeAlias = str | bytes | int | float
Command: TypeAlias = tuple[Argument, ...]


class Connection(asyncio.Protocol):
    """One connection. Calls `on_reply` with each reply, which may be a RedisError, and `on_lost` once, unless it was
    closed here. A RedisError that `on_reply` raises closes it, too.
    """

    def __init__(self, on_reply: Callable[[Any], None], on_lost: Callable[[RedisError], None]) -> None:
        self._on_reply = on_reply
        self._on_lost = on_lost
        self._reader = hiredis.Reader(protocolError=InvalidResponse, replyError=BaseParser.parse_error)

    async def open(self, pool: ConnectionPool) -> None:
        """Opens a connection beside those of the pool. Raises what redis-py raises."""
        self._opened = pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            await self._opened.connect()
        except BaseException:
            await self._opened.disconnect(nowait=True)
            raise
        self._transport = cast("asyncio.Transport", self._opened._writer.transport)
        self._transport.set_protocol(self)
        if self._transport.is_closing():
            self.close()
            raise redis_errors.ConnectionError("the connection was lost")

    def write(self, *commands: Command) -> None:
        self._transport.write(b"".join(map(_pack, commands)))

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                self._on_reply(reply)
        except RedisError as error:
            self.lose(error)

    def connection_lost(self, error: Exception | None) -> None:
        lost = redis_errors.ConnectionError("the connection was lost")
        lost.__cause__ = error
        self.lose(lost)

    def lose(self, error: RedisError) -> None:
        """Closes the connection because of an error."""
        on_lost = self._on_lost
        self.close()
        on_lost(error)

    def close(self) -> None:
        self._on_lost = self._on_reply = lambda _: None
        self._transport.abort()
        self._opened._writer = None  # redis-py warns of a connection that was not closed through it


class Pipeline:
    """Sends commands through one connection, which it opens when it is first used, and again after it was lost."""

    def __init__(self, pool: ConnectionPool, *, reply_timeout_s: float = REPLY_TIMEOUT_S) -> None:
        self._pool = pool
        self._reply_timeout_s = reply_timeout_s
        self._connection: Connection | None = None
        self._opening = asyncio.Lock()
        # The callers that wait for replies, in order, with the times at which they would have waited too long.
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def send(self, *commands: Command, wait_s: float = 0) -> Any:
        """Returns the reply to the last of the commands, which wait on the server for up to `wait_s`.

        A command is executed even if the caller is cancelled after it was sent. Raises what redis-py raises, for any of
        the commands.
        """
        connection = self._connection or await self._open()
        if connection is not self._connection:  # lost before this task continued
            raise redis_errors.ConnectionError("the connection was lost")
        loop, deadline = asyncio.get_running_loop(), time.monotonic() + self._reply_timeout_s + wait_s
        connection.write(*commands)
        replies = [loop.create_future() for _ in commands]
        self._waiting.extend((reply, deadline) for reply in replies)
        if self._timer is None:
            self._check_deadline()
        for reply in replies[:-1]:
            await reply
        return await replies[-1]

    async def _open(self) -> Connection:
        async with self._opening:
            if self._connection is None:
                connection = Connection(self._on_reply, self._on_lost)
                await connection.open(self._pool)
                self._connection = connection
            return self._connection

    def _on_reply(self, reply: Any) -> None:
        future, _ = self._waiting.popleft()
        if isinstance(reply, RedisError):
            _fail(future, reply)
            if isinstance(reply, ReadOnlyError):
                raise reply  # the primary was demoted: the next connection finds its successor
        elif not future.done():  # its caller was cancelled
            future.set_result(reply)

    def _on_lost(self, error: RedisError) -> None:
        self._connection = None
        waiting, self._waiting = self._waiting, deque()
        for future, _ in waiting:
            _fail(future, error)

    def _check_deadline(self) -> None:
        """Runs once in `reply_timeout_s` while commands are sent, instead of a timer for each."""
        self._timer = None
        if not self._waiting or self._connection is None:
            return
        deadline = self._waiting[0][1]
        if deadline <= time.monotonic():
            self._connection.lose(redis_errors.TimeoutError("no reply in time"))
        else:
            self._timer = asyncio.get_running_loop().call_later(deadline - time.monotonic(), self._check_deadline)

    def close(self) -> None:
        """Closes the connection. Commands without a reply fail; the server may still execute them."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._connection is not None:
            self._connection.lose(redis_errors.ConnectionError("the connection was closed"))


def _fail(future: asyncio.Future[Any], error: RedisError) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # so that asyncio does not log it: a caller of several commands gets the first error only


class Script:
    """A Lua script, which is sent as a whole only if the server does not have it."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    async def run(self, pipeline: Pipeline, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        """Returns its reply. Raises what `Pipeline.send` does."""
        try:
            return await pipeline.send(self.command(keys, args))
        except NoScriptError:
            return await pipeline.send(("EVAL", self._text, len(keys), *keys, *args))

    def command(self, keys: Sequence[str], args: Sequence[Argument]) -> Command:
        """Returns the command, which raises NoScriptError if the server does not have the script."""
        return ("EVALSHA", self._sha, len(keys), *keys, *args)

    async def load(self, pipeline: Pipeline) -> None:
        await pipeline.send(("SCRIPT", "LOAD", self._text))


class Redis(ArqRedis):
    """arq's client, with pipelines beside its pool: `pipelined` for commands that do not wait, and others."""

    def __init__(self, pool: ConnectionPool, **options: Any) -> None:
        super().__init__(pool, **options)
        self._pipelines: list[Pipeline] = []
        self.pipelined = self.add_pipeline()

    def add_pipeline(self) -> Pipeline:
        """Returns one with a connection of its own, which is closed with this client."""
        self._pipelines.append(Pipeline(self.connection_pool))
        return self._pipelines[-1]

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        for pipeline in self._pipelines:
            pipeline.close()
        await super().aclose(close_connection_pool)
