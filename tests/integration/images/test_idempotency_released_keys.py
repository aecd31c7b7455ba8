"""Idempotency-Key: refusals, deletions and 24 hours release a key for another image."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from service.config.settings import Settings
from service.database import Database
from service.ids import AccountId, ImageId
from service.images.idempotency import find_by_key, release_expired_keys
from service.images.pending import insert_pending, mark_failed
from service.queue.jobs import open_redis
from tests.conftest import Client, RunBurst, Tenant, resources_of, run_worker
from tests.support.idempotency import (
    KEY,
    LOCAL,
    OTHER,
    PICTURE,
    Answer,
    Origin,
    answer,
    assert_nothing_stored,
    assert_one_image,
    get_url,
    new_image,
    post,
    store,
)
from tests.support.samples import stored_files
from tests.support.verify import verify
from tests.support.waiting import until
from worker.cron.sweep import sweep
from worker.resources import open_resources

# Refused and deleted images


async def both_wait(
    api: Client, other: Client, tenant: Tenant, connection: Any
) -> tuple[asyncio.Task[Answer], asyncio.Task[Answer], ImageId]:
    """Two requests under one key that wait for one image, and its id."""
    for each in (api, other):
        resources_of(each).ingest.waiter.poll_interval_s = 0.05
    first = asyncio.create_task(post(api, tenant))
    image_id = ImageId(await until(lambda: connection.fetchval("select id from images")))
    second = asyncio.create_task(post(other, tenant))
    await until(lambda: all(resources_of(each).ingest.waiter.count(image_id) for each in (api, other)))
    return first, second, image_id


@pytest.mark.usefixtures("worker")
async def test_refused_picture_releases_its_key(
    api: Client, tenant: Tenant, settings: Settings, connection: Any
) -> None:
    for _ in range(2):
        assert (await post(api, tenant, b"not a picture")).refusal == (415, "unsupported-image")
    await assert_nothing_stored(settings, connection)
    first = await post(api, tenant)
    assert first.status == 200
    assert await post(api, tenant) == first
    await assert_one_image(settings, connection, first.id)


@pytest.mark.usefixtures("worker")
async def test_concurrent_refusals_have_the_same_error(
    api: Client, tenant: Tenant, settings: Settings, connection: Any
) -> None:
    for _ in range(3):
        answers = await asyncio.gather(*(post(api, tenant, b"not a picture") for _ in range(20)))
        assert {each.refusal for each in answers} == {(415, "unsupported-image")}
    await assert_nothing_stored(settings, connection)
    assert await connection.fetchval("select count(idempotency_key) from images") == 0


@pytest.mark.slow
@pytest.mark.usefixtures("worker")
async def test_row_of_a_refused_picture_lasts_a_minute(
    api: Client, tenant: Tenant, settings: Settings, connection: Any
) -> None:
    for _ in range(2):
        await post(api, tenant, b"not a picture")
    redis = open_redis(settings.redis_url)
    async with open_resources(settings, redis) as resources:
        await sweep({"resources": resources}, batch_size=2)
        assert await connection.fetchval("select count(*) from images where state = 'failed'") == 2
        await connection.execute("update images set failed_at = failed_at - interval '61 s'")
        await sweep({"resources": resources}, batch_size=2)
        assert await connection.fetchval("select count(*) from images") == 0
    await redis.aclose(close_connection_pool=True)


async def test_waiting_repetition_gets_the_refusal(
    api: Client, other_api: Client, tenant: Tenant, connection: Any, database: Database
) -> None:
    """Also in another process, which gets no reply and polls the row."""
    first, second, image_id = await both_wait(api, other_api, tenant, connection)
    async with database.connection() as own:
        await mark_failed(own, image_id, "probe-failed")
    assert (await first).refusal == (await second).refusal == (422, "probe-failed")
    assert await connection.fetchval("select count(idempotency_key) from images") == 0


@pytest.mark.slow
@LOCAL
@pytest.mark.usefixtures("worker")
async def test_url_without_a_picture_is_fetched_again(
    api: Client, tenant: Tenant, origin: Origin, url: str, settings: Settings, connection: Any
) -> None:
    origin.body = b"<html>"
    for _ in range(2):
        assert (await get_url(api, tenant, url)).refusal == (415, "not-an-image")
    origin.body = PICTURE
    first = await get_url(api, tenant, url)
    assert first.status == 200
    assert origin.requests == 3
    await assert_one_image(settings, connection, first.id)


@LOCAL
async def test_waiting_download_gets_the_refusal(
    api: Client, tenant: Tenant, origin: Origin, url: str, connection: Any, settings: Settings
) -> None:
    origin.body = b"<html>"
    first = asyncio.create_task(get_url(api, tenant, url))
    image_id = await until(lambda: connection.fetchval("select id from images"))
    second = asyncio.create_task(get_url(api, tenant, url))
    await until(lambda: resources_of(api).ingest.waiter.count(image_id) == 2)
    async with run_worker(settings):
        assert (await first).refusal == (await second).refusal == (415, "not-an-image")
    assert origin.requests == 1


@pytest.mark.settings(wait_s=0.2)
async def test_failure_after_a_202_releases_the_key(
    api: Client, tenant: Tenant, settings: Settings, burst: RunBurst
) -> None:
    first = await post(api, tenant, b"not a picture")
    assert first.status == 202
    await burst()
    assert (await answer(api.get(f"/v1/images/{first.id}", headers=tenant.headers))).refusal[0] == 415
    again = await post(api, tenant)
    assert again.status == 202
    assert again.id != first.id


@pytest.mark.usefixtures("worker")
async def test_truncated_body_does_not_use_the_key(api: Client, tenant: Tenant, settings: Settings) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(
        b"POST /v1/images HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 900000\r\n"
        + f"Idempotency-Key: {KEY}\r\nX-Api-Key: {tenant.key}\r\n\r\n".encode()
        + b"x" * 600_000
    )
    await writer.drain()
    await until(lambda: stored_files(settings))
    assert (await post(api, tenant)).status == 200  # while the other is still on its way
    writer.close()
    await until(lambda: len(stored_files(settings)) == 1)


@pytest.mark.usefixtures("worker")
async def test_deleted_image_releases_its_key(api: Client, tenant: Tenant, settings: Settings, connection: Any) -> None:
    first = await post(api, tenant)
    await answer(api.delete(f"/v1/images/{first.id}", headers=tenant.headers))
    second = await post(api, tenant, OTHER)
    assert second.status == 200
    assert second.id != first.id
    await assert_one_image(settings, connection, second.id, OTHER)


async def test_waiting_repetition_learns_of_the_deletion(
    api: Client, other_api: Client, tenant: Tenant, connection: Any
) -> None:
    first, second, image_id = await both_wait(api, other_api, tenant, connection)
    await answer(api.delete(f"/v1/images/{image_id}", headers=tenant.headers))
    assert (await first).refusal == (await second).refusal == (404, "image-deleted")


async def test_key_of_a_deleted_image_goes_to_the_next(
    api: Client, tenant: Tenant, connection: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = resources_of(api)
    first = asyncio.create_task(store(service, tenant))
    image_id = await until(lambda: connection.fetchval("select id from images"))

    async def find_after_delete(own: Any, account_id: AccountId, key: str) -> Any:
        await answer(api.delete(f"/v1/images/{image_id}", headers=tenant.headers))
        return await find_by_key(own, account_id, key)

    monkeypatch.setattr("service.uploads.ingest.find_by_key", find_after_delete)
    async with run_worker(settings):
        new, image = await store(service, tenant)
    assert image is not None
    assert new.id == image.id != image_id
    await asyncio.wait([first])
    await assert_one_image(settings, connection, new.id)


# After 24 hours


async def age(connection: Any, hours: float) -> None:
    await connection.execute("update images set created_at = now() - $1::float8 * interval '1 hour'", hours)


@LOCAL
@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("by_url", [False, True])
async def test_key_expires_after_24_hours(
    api: Client, tenant: Tenant, origin: Origin, url: str, connection: Any, settings: Settings, by_url: bool
) -> None:
    send = partial(get_url, api, tenant, url) if by_url else partial(post, api, tenant)
    first = await send()
    await age(connection, 23.99)
    assert await send() == first
    await age(connection, 24)
    second = await send()
    assert second.status == 200
    assert second.id != first.id
    assert await send() == second
    keys = dict(await connection.fetch("select id, idempotency_key from images"))
    assert keys == {first.id: None, second.id: KEY}
    assert (await verify(settings)).is_well


@pytest.mark.usefixtures("worker")
async def test_concurrent_use_of_an_expired_key(
    api: Client, tenant: Tenant, connection: Any, settings: Settings
) -> None:
    first = await post(api, tenant)
    await age(connection, 25)
    second, *others = await asyncio.gather(*(post(api, tenant) for _ in range(10)))
    assert second.id != first.id
    assert others == [second] * 9
    assert len(stored_files(settings)) == 2


async def test_the_sweep_forgets_old_keys_step_by_step_and_no_others(
    settings: Settings, tenant: Tenant, database: Database, connection: Any
) -> None:
    await insert_pending(database, [new_image(tenant.id, key=f"old-{number}", url=b"u") for number in range(7)])
    await connection.execute("update images set state = 'ready'")
    await age(connection, 24.1)
    young = new_image(tenant.id, key="young", url=b"u")
    await insert_pending(database, [young, new_image(tenant.id)])
    async with database.connection() as own:
        assert await release_expired_keys(own, 2) == 2
    redis = open_redis(settings.redis_url)
    async with open_resources(settings, redis) as resources:
        await sweep({"resources": resources}, batch_size=2)
    await redis.aclose(close_connection_pool=True)
    rows = await connection.fetch(
        "select id, idempotency_key from images where num_nonnulls(idempotency_key, idempotency_url) > 0"
    )
    assert [tuple(row) for row in rows] == [(young.id, "young")]
    assert await connection.fetchval("select count(*) from images") == 9
