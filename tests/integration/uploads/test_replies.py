"""A request that waits for its job: a reply wakes it, and a lost reply costs a second, never the request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.batcher import running
from service.config.settings import Settings
from service.database import Database
from service.errors import ServiceError
from service.ids import ImageId
from service.images.queries import load_image
from service.queue import jobs, pubsub
from service.uploads import replies
from service.uploads.replies import Replies, Reply
from tests.conftest import Servers, Tenant

ID = ImageId("AAAAAAA")


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    async with Database.open(settings.database_url, connections=2) as database:
        yield database


@pytest.fixture
async def listening(settings: Settings, database: Database) -> AsyncIterator[Replies]:
    redis = jobs.open_redis(settings.redis_url)
    listener = Replies(redis, database)
    async with running(listener.listen()):
        await until_connected(listener)
        yield listener
    await redis.aclose(close_connection_pool=True)


async def send(listening: Replies, reply: Reply) -> None:
    async with listening._listener._redis.pipeline(transaction=False) as pipe:
        pubsub.send(pipe, listening.channel, [reply])
        await pipe.execute()


async def until_connected(listener: Replies) -> None:
    async with asyncio.timeout(5):
        while not listener.connected:
            await asyncio.sleep(0.005)


@pytest.fixture
async def pending(connection: Any, tenant: Tenant) -> None:
    await connection.execute("insert into images (id, account_id, size, sha256) values ($1, $2, 10, '')", ID, tenant.id)


async def mark_ready(connection: Any) -> None:
    await connection.execute("update images set state = 'ready', format = 'png', width = 1, height = 1")


@pytest.mark.usefixtures("pending")
async def test_a_reply_wakes_the_request_at_once_and_carries_the_row(
    listening: Replies, connection: Any, tenant: Tenant
) -> None:
    with listening.expect(ID, tenant.id) as waiter:
        waiting = asyncio.create_task(waiter.wait(5))
        await asyncio.sleep(0.05)
        await mark_ready(connection)
        image = await load_image(connection, ID)
        await connection.execute("delete from images")  # so that only the reply can tell
        sent = time.perf_counter()
        await send(listening, Reply(ID, image))
        assert await waiting == image
        assert time.perf_counter() - sent < 0.3


@pytest.mark.usefixtures("pending")
async def test_a_reply_before_the_wait_is_not_lost(listening: Replies, connection: Any, tenant: Tenant) -> None:
    with listening.expect(ID, tenant.id) as waiter:
        await mark_ready(connection)
        image = await load_image(connection, ID)
        await send(listening, Reply(ID, image))
        await asyncio.sleep(0.1)
        started = time.perf_counter()
        assert await waiter.wait(5) == image
        assert time.perf_counter() - started < 0.3


@pytest.mark.usefixtures("pending")
async def test_without_a_reply_the_row_is_looked_at_once_a_second(
    listening: Replies, connection: Any, tenant: Tenant
) -> None:
    with listening.expect(ID, tenant.id) as waiter:
        waiting = asyncio.create_task(waiter.wait(5))
        await asyncio.sleep(0.1)
        await mark_ready(connection)
        started = time.perf_counter()
        image = await waiting
        assert image is not None
        assert image.state == "ready"
        assert 0.5 < time.perf_counter() - started < 2


@pytest.mark.usefixtures("pending")
async def test_an_image_that_stays_pending_is_none_when_the_time_is_up(listening: Replies, tenant: Tenant) -> None:
    with listening.expect(ID, tenant.id) as waiter:
        assert await waiter.wait(0.2) is None


@pytest.mark.parametrize("by_reply", [True, False])
@pytest.mark.usefixtures("pending")
async def test_an_image_deleted_meanwhile_is_told(
    listening: Replies, connection: Any, tenant: Tenant, by_reply: bool
) -> None:
    await connection.execute("delete from images")
    with listening.expect(ID, tenant.id) as waiter:
        if by_reply:
            await send(listening, Reply(ID, None))
        with pytest.raises(ServiceError) as refusal:
            await waiter.wait(5)
    assert refusal.value.code == "image-deleted"


@pytest.mark.usefixtures("pending")
async def test_a_channel_that_comes_back_makes_every_request_look(
    listening: Replies, connection: Any, tenant: Tenant, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "_LOOK_S", 60)
    with listening.expect(ID, tenant.id) as waiter:
        waiting = asyncio.create_task(waiter.wait(30))
        await asyncio.sleep(0.1)
        servers.valkey.stop()
        await mark_ready(connection)
        servers.valkey.start()
        image = await waiting
    assert image is not None
    assert image.state == "ready"
    await until_connected(listening)


async def test_a_quiet_channel_stays_connected(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pubsub, "_SILENCE_S", 0.1)
    redis = jobs.open_redis(settings.redis_url)
    listener = Replies(redis, database)
    lost = 0
    async with running(listener.listen()):
        await until_connected(listener)
        for _ in range(50):
            await asyncio.sleep(0.02)
            lost += not listener.connected
    await redis.aclose(close_connection_pool=True)
    assert lost == 0


async def test_nobody_is_left_registered(listening: Replies, tenant: Tenant) -> None:
    with listening.expect(ID, tenant.id):
        pass
    assert listening._waiters == {}


@pytest.mark.usefixtures("pending")
async def test_a_message_of_another_version_is_dropped(listening: Replies, connection: Any, tenant: Tenant) -> None:
    with listening.expect(ID, tenant.id) as waiter:
        await listening._listener._redis.publish(listening.channel, b"\xc1 garbage")
        await mark_ready(connection)
        await send(listening, Reply(ID, await load_image(connection, ID)))
        image = await waiter.wait(5)
    assert image is not None
    assert image.state == "ready"
    assert listening.connected
