"""Messages between processes: Redis channels, which only reach subscribers that are connected at that time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

import msgspec
import structlog

from service.dependencies.outages import QUEUE
from service.queue.jobs import UNAVAILABLE

log = structlog.get_logger(__name__)

Message = TypeVar("Message")

_encoder = msgspec.msgpack.Encoder()


def encode_message(message: object) -> bytes:
    """Encodes one message. A channel carries arrays of them."""
    return _encoder.encode(message)


def publish(redis: Any, channel: str, messages: Sequence[object]) -> Any:
    """Publishes messages to whoever is subscribed now, if anyone."""
    return redis.publish(channel, _encoder.encode(messages))


class Subscriber(Generic[Message]):
    """Hands each message of `message_type` on its channels to `on_message`.

    Messages that are published while it is not connected are lost, so it calls `on_gap` when it connects and when the
    connection is lost. After `ping_after_s` without a message it pings, to notice a Redis host that vanished.
    """

    def __init__(
        self,
        redis: Any,
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
        async with self._redis.pubsub() as pubsub:
            await pubsub.subscribe(*self._channels)
            pinged = False
            while True:
                message = await pubsub.get_message(timeout=self._ping_after_s)
                if message is None:
                    if pinged:
                        raise ConnectionError("Redis does not answer a ping")
                    await pubsub.ping()
                pinged = message is None
                if message is not None and message["type"] == "message":
                    self._handle(message["data"])
                elif message is not None and message["type"] == "subscribe" and message["data"] == len(self._channels):
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
