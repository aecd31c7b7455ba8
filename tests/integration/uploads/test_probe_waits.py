"""An upload waits for its probe: a reply wakes it, and a lost reply costs a second, never the request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from service.config.settings import Settings
from service.errors import ServiceError
from service.ids import ImageId
from service.images.models import Image, NewImage
from service.images.queries import load_image
from service.queue import jobs
from service.queue.waiter import publish
from service.uploads.ingest import Ingest, ProbeResult
from tests.conftest import Client, Servers, Tenant, resources_of
from tests.support.disks import on_disk
from tests.support.waiting import until

ID = ImageId("AAAAAAA")


@pytest.fixture
def ingest(api: Client) -> Ingest:
    return resources_of(api).ingest


@pytest.fixture
async def pending(api: Client, connection: Any, tenant: Tenant) -> NewImage:
    await connection.execute("insert into images (id, account_id, size, sha256) values ($1, $2, 10, '')", ID, tenant.id)
    on_disk(resources_of(api).storage).path(ID).write_bytes(b"0123456789")
    return NewImage(ID, tenant.id, 10, b"", [])


@pytest.fixture
async def reply(settings: Settings, ingest: Ingest) -> AsyncIterator[Callable[[Image | None], Awaitable[None]]]:
    redis = jobs.open_redis(settings.redis_url)

    async def reply(image: Image | None) -> None:
        await publish(redis, ingest.reply_channel, [ProbeResult(ID, image)])

    yield reply
    await redis.aclose(close_connection_pool=True)


Reply = Callable[[Image | None], Awaitable[None]]


async def mark_ready(connection: Any) -> None:
    await connection.execute("update images set state = 'ready', format = 'png', width = 1, height = 1")


async def begin(ingest: Ingest, new: NewImage) -> asyncio.Task[Image | None]:
    """A wait whose job is in the queue."""
    wait = asyncio.create_task(ingest.wait(new, "r"))
    await until(lambda: ingest.waiter.count(ID))
    await asyncio.sleep(0.05)
    return wait


async def test_reply_ends_the_wait_with_its_row(
    ingest: Ingest, pending: NewImage, connection: Any, reply: Reply
) -> None:
    ingest.waiter.poll_interval_s = ingest.waiter.lost_after_s = 60
    wait = await begin(ingest, pending)
    await mark_ready(connection)
    image = await load_image(connection, ID)
    await connection.execute("delete from images")  # so only the reply has it
    sent = time.perf_counter()
    await reply(image)
    assert await wait == image
    assert time.perf_counter() - sent < 1
    assert ingest.waiter.count(ID) == 0


async def test_lost_reply_costs_a_poll(ingest: Ingest, pending: NewImage, connection: Any) -> None:
    wait = await begin(ingest, pending)
    await mark_ready(connection)
    started = time.perf_counter()
    image = await wait
    assert image is not None
    assert image.state == "ready"
    assert 0.4 < time.perf_counter() - started < 4


@pytest.mark.settings(wait_s=0.2)
async def test_pending_image_is_none_after_the_timeout(ingest: Ingest, pending: NewImage) -> None:
    assert await ingest.wait(pending, "r") is None


@pytest.mark.parametrize("by_reply", [True, False])
async def test_deletion_ends_the_wait(
    ingest: Ingest, pending: NewImage, connection: Any, reply: Reply, by_reply: bool
) -> None:
    if by_reply:
        ingest.waiter.poll_interval_s = ingest.waiter.lost_after_s = 60
    wait = await begin(ingest, pending)
    await connection.execute("delete from images")
    if by_reply:
        await reply(None)
    with pytest.raises(ServiceError, match="image-deleted"):
        await wait


@pytest.mark.slow
@pytest.mark.settings(wait_s=20)
async def test_reconnected_channel_makes_every_wait_check(
    ingest: Ingest, pending: NewImage, connection: Any, servers: Servers
) -> None:
    ingest.waiter.poll_interval_s = ingest.waiter.lost_after_s = 60
    wait = await begin(ingest, pending)
    servers.valkey.stop()
    await mark_ready(connection)
    servers.valkey.start()
    image = await wait
    assert image is not None
    assert image.state == "ready"
    await until(lambda: ingest.results.connected)
