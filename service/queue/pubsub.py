"""Messages between processes: pub/sub channels, heard for as long as their listener lives."""

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

_RECONNECT_S = 0.5
# A silent connection is asked for a sign of life, so that a Redis host that vanished is noticed.
_SILENCE_S = 5.0

Message = TypeVar("Message")

_encoder = msgspec.msgpack.Encoder()


def encode_message(message: object) -> bytes:
    """What is published is an array of them."""
    return _encoder.encode(message)


def send(redis: Any, channel: str, messages: Sequence[object]) -> Any:
    """Publish; nobody may listen any more."""
    return redis.publish(channel, _encoder.encode(messages))


class Listener(Generic[Message]):
    """Hands each message of type `kind` on these channels to `deliver`, and tells `changed` when it connects and when
    the connection is lost: what is published in between is heard by nobody.
    """

    def __init__(
        self,
        redis: Any,
        channels: Sequence[str],
        kind: Any,  # a type, or a union of types
        *,
        deliver: Callable[[Message], None],
        changed: Callable[[], None],
    ) -> None:
        self.connected = False
        self.error: Exception | None = None  # what ended the last connection
        self._redis = redis
        self._channels = channels
        self._decoder = msgspec.msgpack.Decoder(list[kind])
        self._deliver = deliver
        self._changed = changed
        self._first_connected = asyncio.Event()

    async def wait_connected(self, timeout_s: float) -> None:
        """Until the channels are heard, or the time is up."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._first_connected.wait()

    async def listen(self) -> None:
        """Until cancelled; reconnects by itself."""
        while True:
            try:
                await self._subscribe_and_deliver()
            except UNAVAILABLE as error:
                self.error = error
                QUEUE.report(error)
            finally:
                self.connected = False
                self._changed()
            await asyncio.sleep(_RECONNECT_S)

    async def _subscribe_and_deliver(self) -> None:
        async with self._redis.pubsub() as pubsub:
            await pubsub.subscribe(*self._channels)
            asked = False
            while True:
                message = await pubsub.get_message(timeout=_SILENCE_S)
                if message is None:
                    if asked:
                        raise ConnectionError("the channels are silent")
                    await pubsub.ping()
                asked = message is None
                if message is not None and message["type"] == "message":
                    self._decode_and_deliver(message["data"])
                elif message is not None and message["type"] == "subscribe" and message["data"] == len(self._channels):
                    self.connected = True
                    self._first_connected.set()
                    self._changed()

    def _decode_and_deliver(self, data: bytes) -> None:
        try:
            messages = self._decoder.decode(data)
        except msgspec.MsgspecError as error:  # of another version's process
            log.warning("channel.undecodable", channels=self._channels, error=repr(error))
            return
        for message in messages:
            self._deliver(message)
