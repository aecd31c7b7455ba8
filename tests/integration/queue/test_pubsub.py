"""A subscriber gets what is published while it is connected, and says when messages may have been lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from service.batcher import running
from service.config.settings import Settings
from service.queue import jobs
from service.queue.waiter import Subscriber, publish
from tests.conftest import Servers
from tests.support.waiting import until

CHANNEL = "daguerre:test"


class Message(msgspec.Struct, frozen=True):
    number: int


class Received:
    def __init__(self, redis: Any, **timings: float) -> None:
        self.messages: list[Message] = []
        self.gaps = 0
        self.subscriber: Subscriber[Message] = Subscriber(
            redis, [CHANNEL], Message, on_message=self.messages.append, on_gap=self._count_gap, **timings
        )

    def _count_gap(self) -> None:
        self.gaps += 1


@pytest.fixture
async def redis(settings: Settings) -> AsyncIterator[Any]:
    redis = jobs.open_redis(settings.redis_url)
    yield redis
    await redis.aclose(close_connection_pool=True)


async def test_messages_arrive_in_order(redis: Any) -> None:
    received = Received(redis)
    assert isinstance(received.subscriber.find_error(), ConnectionError)
    async with running(received.subscriber.run()):
        await received.subscriber.wait_connected(5)
        assert received.subscriber.find_error() is None
        await publish(redis, CHANNEL, [Message(1), Message(2)])
        await publish(redis, CHANNEL, [Message(3)])
        await until(lambda: len(received.messages) == 3)
    assert received.messages == [Message(1), Message(2), Message(3)]
    assert received.gaps == 2  # at its first connection, and at its end


async def test_message_of_another_version_is_dropped(redis: Any) -> None:
    received = Received(redis)
    async with running(received.subscriber.run()):
        await received.subscriber.wait_connected(5)
        await redis.publish(CHANNEL, b"\xc1 garbage")
        await publish(redis, CHANNEL, [Message(1)])
        await until(lambda: received.messages)
        assert received.subscriber.connected
    assert received.messages == [Message(1)]


async def test_quiet_channel_stays_connected(redis: Any) -> None:
    received = Received(redis, ping_after_s=0.1)
    async with running(received.subscriber.run()):
        await received.subscriber.wait_connected(5)
        await asyncio.sleep(1)
        assert received.gaps == 1
        assert received.subscriber.connected


async def test_lost_connection_is_a_gap(redis: Any, servers: Servers) -> None:
    received = Received(redis, reconnect_after_s=0.05)
    async with running(received.subscriber.run()):
        await received.subscriber.wait_connected(5)
        servers.valkey.stop()
        await until(lambda: not received.subscriber.connected)
        assert received.subscriber.find_error() is not None
        servers.valkey.start()
        await until(lambda: received.subscriber.connected)
        assert received.gaps >= 3
        await publish(redis, CHANNEL, [Message(1)])
        await until(lambda: received.messages)
