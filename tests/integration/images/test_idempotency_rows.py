"""Idempotency-Key in the statements that insert images: batches, races, and taken ids."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import asyncpg
import pytest

from service.batcher import Batcher, running
from service.config.settings import Settings
from service.database import Database
from service.errors import ServiceError
from service.ids import ImageId
from service.images import pending
from service.images.models import IdempotencyKey
from service.images.pending import KeyTaken, insert_pending
from service.storage.interface import IdTaken
from service.uploads import receiving
from tests.conftest import Client, NewTenant, Tenant
from tests.support.idempotency import OTHER, new_image, post
from tests.support.samples import stored_files
from tests.support.verify import verify
from tests.support.waiting import until


def kinds(outcomes: Sequence[Exception | None]) -> list[object]:
    return [outcome.code if isinstance(outcome, ServiceError) else outcome and type(outcome) for outcome in outcomes]


async def counted(connection: Any, tenant: Tenant) -> int:
    """How many images there are; the counters agree."""
    stored = await connection.fetchrow("select count(*), coalesce(sum(size), 0) from images where state <> 'failed'")
    counters = await connection.fetchrow("select num_images, used_bytes from accounts where id = $1", tenant.id)
    assert tuple(stored) == tuple(counters)
    return int(stored[0])


async def test_key_twice_in_a_batch_inserts_the_first(
    database: Database, tenant: Tenant, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def insert_alone(*_: object) -> None:
        pytest.fail("the batch fell apart")

    monkeypatch.setattr(pending, "_insert_alone", insert_alone)
    batch = [new_image(tenant.id, key="a"), new_image(tenant.id, key="a"), new_image(tenant.id), new_image(tenant.id)]
    assert kinds(await insert_pending(database, batch)) == [None, KeyTaken, None, None]
    batch = [new_image(tenant.id), new_image(tenant.id, key="a"), new_image(tenant.id, key="b")]
    assert kinds(await insert_pending(database, batch)) == [None, KeyTaken, None]
    assert kinds(await insert_pending(database, [new_image(tenant.id, key="a")])) == [KeyTaken]
    assert await counted(connection, tenant) == 5


async def test_key_of_an_oversized_first_goes_to_the_next(
    database: Database, new_tenant: NewTenant, connection: Any
) -> None:
    tenant = await new_tenant(max_bytes=100)
    batch = [new_image(tenant.id, size, key="a") for size in (200, 60, 60)]
    assert kinds(await insert_pending(database, batch)) == ["quota-exceeded", None, KeyTaken]
    assert await counted(connection, tenant) == 1


async def test_taken_id_is_not_mistaken_for_a_taken_key(database: Database, tenant: Tenant, connection: Any) -> None:
    first = new_image(tenant.id, key="a")
    await insert_pending(database, [first])
    batch = [new_image(tenant.id, key="b", id=first.id), new_image(tenant.id, key="a"), new_image(tenant.id, key="c")]
    assert kinds(await insert_pending(database, batch)) == [IdTaken, KeyTaken, None]
    assert await counted(connection, tenant) == 2


@pytest.mark.usefixtures("worker")
async def test_upload_under_a_key_gets_another_id(
    api: Client, tenant: Tenant, settings: Settings, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await post(api, tenant, OTHER, key="first")
    monkeypatch.setattr(receiving, "new_image_id", lambda: ImageId(first.id))
    second = await post(api, tenant)
    assert second.status == 200
    assert second.id != first.id
    assert await post(api, tenant) == second
    assert await counted(connection, tenant) == len(stored_files(settings)) == 2
    assert (await verify(settings)).is_well


async def test_racing_inserts_make_one_image_per_key(
    settings: Settings, database: Database, tenant: Tenant, connection: Any
) -> None:
    async def write() -> list[object]:
        async with Database.open(settings.database_url, connections=2) as own:
            batcher = Batcher(partial(insert_pending, own), limit=7)
            async with running(batcher.run()):
                images = [new_image(tenant.id, key=f"key-{number % 30}") for number in range(60)]
                return kinds(await asyncio.gather(*map(batcher.submit, images), return_exceptions=True))  # type: ignore[arg-type]

    outcomes = [outcome for group in await asyncio.gather(*(write() for _ in range(4))) for outcome in group]
    assert set(outcomes) == {None, KeyTaken}
    assert outcomes.count(None) == await counted(connection, tenant) == 30


async def test_race_for_the_last_space_reports_the_key(
    settings: Settings, database: Database, new_tenant: NewTenant, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant = await new_tenant(max_bytes=10)
    rival = await asyncpg.connect(settings.database_url)
    try:
        transaction = rival.transaction()
        await transaction.start()
        await pending._insert(rival, [new_image(tenant.id, key="a")])
        second = asyncio.create_task(insert_pending(database, [new_image(tenant.id, key="a")]))
        await until(lambda: connection.fetchval("select count(*) from pg_locks where not granted"))
        await transaction.commit()
        assert kinds(await second) == [KeyTaken]
    finally:
        await rival.close()
    assert await counted(connection, tenant) == 1


async def test_insert_survives_the_end_of_its_keys_image(
    settings: Settings, database: Database, tenant: Tenant, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The insert holds the account and waits for the image; the delete holds the image and waits for the account."""
    await insert_pending(database, [new_image(tenant.id, key="a", id="AAAAAAA")])

    async def find_none(*_: object) -> set[object]:
        return set()

    monkeypatch.setattr(pending, "find_used_keys", find_none)  # as if it had been inserted after the look-up
    rival = await asyncpg.connect(settings.database_url)
    try:
        transaction = rival.transaction()
        await transaction.start()
        await rival.execute("set local deadlock_timeout = '10s'")  # the insert is to be the one that gives way
        await rival.execute("delete from images where id = 'AAAAAAA'")
        batch = [new_image(tenant.id, key="a"), new_image(tenant.id)]
        inserting = asyncio.create_task(insert_pending(database, batch))
        await until(lambda: connection.fetchval("select count(*) from pg_locks where not granted"))
        await rival.execute(
            "update accounts set used_bytes = used_bytes - 10, num_images = num_images - 1 where id = $1", tenant.id
        )
        await transaction.commit()
        assert kinds(await inserting) == [None, None]
    finally:
        await rival.close()
    assert await counted(connection, tenant) == 2


def test_url_is_stored_as_its_sha256() -> None:
    key = IdempotencyKey.parse("a", "http://e.example/")
    assert key.url_sha256 == hashlib.sha256(b"http://e.example/").digest()
