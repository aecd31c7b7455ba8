"""Waits for the result of a job, which a message from a worker announces.

A reply is a hint that shortens the wait. The row or the file is authoritative, and is checked at intervals, because
Redis may lose a reply or the job. Replies and other messages between processes go through Redis channels, which only
reach subscribers that are connected at that time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

import msgspec
import structlog
from redis.exceptions import RedisError

from service.dependencies.outages import QUEUE
from service.errors import ServiceError
from service.queue.connection import Connection, Redis
from service.queue.jobs import UNAVAILABLE, Job

log = structlog.get_logger(__name__)

Key = TypeVar("Key", bound=Hashable)
Reply = TypeVar("Reply")
Result = TypeVar("Result")
Message = TypeVar("Message")


@dataclass(slots=True, eq=False)
class _Wait(Generic[Reply]):
    wakeup: asyncio.Event = field(default_factory=asyncio.Event)
    reply: Reply | None = None

    async def wait(self, timeout_s: float) -> None:
        """Waits for a wake-up. The timer is one: each upload waits here, and asyncio.timeout takes longer."""
        if not self.wakeup.is_set():
            timer = asyncio.get_running_loop().call_later(timeout_s, self.wakeup.set)
            try:
                await self.wakeup.wait()
            finally:
                timer.cancel()
        self.wakeup.clear()

    def take_reply(self) -> Reply | None:
        reply, self.reply = self.reply, None
        return reply


class JobWaiter(Generic[Key, Reply]):
    """The requests of one process that wait for results, by key. Several may wait for one key.

    `deliver` and `wake_all` are for the subscriber of the process's reply channel. Results are checked every
    `poll_interval_s`. A job is enqueued again after `lost_after_s`, because Redis may lose recent writes or hang, and
    after the next check if it could not be enqueued.
    """

    def __init__(
        self,
        enqueue: Callable[[Job], asyncio.Future[None]],
        *,
        poll_interval_s: float = 0.5,
        lost_after_s: float = 2.0,
    ) -> None:
        self.poll_interval_s = poll_interval_s
        self.lost_after_s = lost_after_s
        self._enqueue_job = enqueue
        self._waits: dict[Key, list[_Wait[Reply]]] = {}

    @property
    def waiting(self) -> int:
        """The number of keys for which requests wait."""
        return len(self._waits)

    def count(self, key: Key) -> int:
        """Returns the number of waits for the key."""
        return len(self._waits.get(key, ()))

    def deliver(self, key: Key, reply: Reply) -> None:
        """Delivers a reply to all waits for the key."""
        for wait in self._waits.get(key, ()):
            wait.reply = reply
            wait.wakeup.set()

    def wake_all(self) -> None:
        """Makes every wait check its result, because replies may have been lost."""
        for waits in self._waits.values():
            for wait in waits:
                wait.wakeup.set()

    async def wait(
        self,
        key: Key,
        job: Job,
        check: Callable[[Reply | None], Awaitable[Result | None]],
        *,
        timeout_s: float,
        check_first: bool = False,
        before_retry: Callable[[], Awaitable[Result | None]] | None = None,
    ) -> Result | None:
        """Enqueues the job and returns what `check` returns, or None if that is still None after `timeout_s`.

        `check` gets the reply, or None if it should read the row or the file itself. `check_first` is for a job that
        may already be finished. `before_retry` is called before the job is enqueued again and at the timeout, and may
        end the wait with its result. Raises what the two functions raise.
        """
        deadline = time.monotonic() + timeout_s
        wait: _Wait[Reply] = _Wait()
        waits = self._waits.setdefault(key, [])
        waits.append(wait)  # before the job is enqueued, so that no reply is missed
        if check_first:
            wait.wakeup.set()
        enqueued: asyncio.Future[None] | None = None
        try:
            while True:
                enqueued = self._enqueue_job(job)
                if timeout_s <= 0:
                    await asyncio.wait([enqueued], timeout=self.lost_after_s)
                    _has_failed(enqueued)
                    return None
                if (result := await self._wait_until_retry(enqueued, deadline, wait, check)) is not None:
                    return result
                enqueued.cancel()
                if before_retry is not None and (result := await before_retry()) is not None:
                    return result
                if time.monotonic() >= deadline:
                    return None
        finally:
            waits.remove(wait)
            if not waits:
                del self._waits[key]
            if enqueued is not None:
                _ignore_error(enqueued)

    async def _wait_until_retry(
        self,
        enqueued: asyncio.Future[None],
        deadline: float,
        wait: _Wait[Reply],
        check: Callable[[Reply | None], Awaitable[Result | None]],
    ) -> Result | None:
        """Does not wait for `enqueued` itself: the reply comes soon after it, and each wake-up of a task costs time."""
        retry_at = min(deadline, time.monotonic() + self.lost_after_s)
        while True:
            await wait.wait(min(retry_at - time.monotonic(), self.poll_interval_s))
            if (result := await check(wait.take_reply())) is not None:
                return result
            if wait.reply is None and (_has_failed(enqueued) or time.monotonic() >= retry_at):
                return None


def _has_failed(enqueued: asyncio.Future[None]) -> bool:
    """Returns whether the job could not be enqueued. Raises an error that is no outage."""
    try:
        if enqueued.done():
            enqueued.result()
    except (ServiceError, TimeoutError, asyncio.CancelledError):
        return True
    return False


def _ignore_error(enqueued: asyncio.Future[None]) -> None:
    """Keeps asyncio from logging an error after the wait has ended, e.g. because the client has disconnected."""
    if not enqueued.done():
        enqueued.add_done_callback(_ignore_error)
    elif not enqueued.cancelled():
        enqueued.exception()


_encoder = msgspec.msgpack.Encoder()


def encode_message(message: object) -> bytes:
    """Encodes one message. A channel carries arrays of them."""
    return _encoder.encode(message)


async def publish(redis: Redis, channel: str, messages: Sequence[object]) -> None:
    """Publishes messages to the current subscribers. Raises what redis-py raises."""
    await redis.pipelined.send(("PUBLISH", channel, _encoder.encode(messages)))


class Subscriber(Generic[Message]):
    """Calls `on_message` for each message of `message_type` on its channels.

    Messages that are published while it is not connected are lost, so it calls `on_gap` when it connects and when the
    connection is lost. After `ping_after_s` without a message it pings, to notice a Redis host that vanished.
    """

    def __init__(
        self,
        redis: Redis,
        channels: Sequence[str],
        message_type: Any,  # a type, or a union of types
        *,
        on_message: Callable[[Message], None],
        on_gap: Callable[[], None],
        ping_after_s: float = 5.0,
        reconnect_after_s: float = 0.5,
    ) -> None:
        self.connected = False
        self._last_error: Exception | None = None
        self._redis = redis
        self._channels = channels
        self._decoder = msgspec.msgpack.Decoder(list[message_type])
        self._on_message = on_message
        self._on_gap = on_gap
        self._ping_after_s = ping_after_s
        self._reconnect_after_s = reconnect_after_s
        self._first_connected = asyncio.Event()
        self._received = False

    def find_error(self) -> Exception | None:
        """Returns why no messages arrive, or None if they do."""
        return None if self.connected else self._last_error or ConnectionError("not connected yet")

    async def wait_connected(self, timeout_s: float) -> None:
        """Returns when it is connected for the first time, or after the timeout."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._first_connected.wait()

    async def run(self) -> None:
        """Receives messages until cancelled. Reconnects by itself."""
        while True:
            try:
                await self._receive()
            except UNAVAILABLE as error:
                self._last_error = error
                QUEUE.report(error)
            finally:
                self.connected = False
                self._on_gap()
            await asyncio.sleep(self._reconnect_after_s)

    async def _receive(self) -> None:
        lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        connection = Connection(self._on_reply, partial(_set_error, lost))
        await connection.open(self._redis.connection_pool)
        try:
            connection.write(("SUBSCRIBE", *self._channels))
            pinged = False
            while not lost.done():
                self._received = False
                await asyncio.wait([lost], timeout=self._ping_after_s)
                if not self._received and pinged:
                    raise ConnectionError("Redis does not respond to a ping")
                pinged = not self._received
                if pinged:
                    connection.write(("PING",))
            lost.result()
        finally:
            connection.close()

    def _on_reply(self, reply: Any) -> None:
        self._received = True
        if isinstance(reply, RedisError):
            raise reply
        if reply[0] == b"message":
            self._handle(reply[2])
        elif reply[0] == b"subscribe" and reply[2] == len(self._channels):
            self.connected = True
            self._first_connected.set()
            self._on_gap()

    def _handle(self, data: bytes) -> None:
        try:
            messages = self._decoder.decode(data)
        except msgspec.MsgspecError as error:  # from a process of another version
            log.warning("pubsub.message_dropped", channels=self._channels, error=repr(error))
            return
        for message in messages:
            self._on_message(message)


def _set_error(future: asyncio.Future[None], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
