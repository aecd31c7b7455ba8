"""The quota is exact under any concurrency, and the counters are never behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import asyncpg
import pytest

from service.accounts.accounts import load_account
from service.batcher import Batcher, running
from service.config.settings import Settings
from service.database import Database
from service.errors import ServiceError
from service.ids import AccountId, ImageId
from service.images import pending
from service.images.models import NewImage
from service.images.pending import insert_pending, mark_failed, new_image_id
from service.storage.interface import IdTaken
from tests.conftest import NewTenant


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    async with Database.open(settings.database_url, connections=8) as database:
        yield database


def new_image(account_id: AccountId, size: int, image_id: ImageId | None = None) -> NewImage:
    return NewImage(image_id or new_image_id(), account_id, size, b"\x00" * 32, ["a", "b"])


async def stored(connection: Any, account_id: AccountId) -> tuple[int, int]:
    return tuple(
        await connection.fetchrow(
            "select coalesce(sum(size), 0)::bigint, count(*) from images where account_id = $1 and state <> 'failed'",
            account_id,
        )
    )


async def test_batch_within_the_quota_is_charged(database: Database, connection: Any, new_tenant: NewTenant) -> None:
    account = await new_tenant(max_bytes=1000)
    assert await insert_pending(database, [new_image(account.id, 400), new_image(account.id, 600)]) == [None, None]
    assert await stored(connection, account.id) == (1000, 2)
    after = await load_account(connection, account.id)
    assert (after.used_bytes, after.num_images, after.remaining_bytes) == (1000, 2, 0)
    assert await connection.fetchval("select tags from images limit 1") == ["a", "b"]


async def test_batch_over_the_quota_is_inserted_singly(
    database: Database, connection: Any, new_tenant: NewTenant
) -> None:
    small, roomy = await new_tenant(max_bytes=1000), await new_tenant()
    outcomes = await insert_pending(
        database,
        [
            new_image(small.id, 700),
            new_image(roomy.id, 5000),
            new_image(small.id, 400),
            new_image(small.id, 300),
        ],
    )
    assert [getattr(outcome, "code", outcome) for outcome in outcomes] == [None, None, "quota-exceeded", None]
    assert await stored(connection, small.id) == (1000, 2)
    assert (await load_account(connection, small.id)).used_bytes == 1000


async def test_taken_id_is_reported_and_not_charged(database: Database, connection: Any, new_tenant: NewTenant) -> None:
    account = await new_tenant()
    first = new_image(account.id, 10)
    await insert_pending(database, [first])
    outcomes = await insert_pending(database, [new_image(account.id, 20, first.id), new_image(account.id, 30)])
    assert isinstance(outcomes[0], IdTaken)
    assert outcomes[1] is None
    assert await stored(connection, account.id) == (40, 2)
    assert (await load_account(connection, account.id)).used_bytes == 40


async def test_error_of_one_image_spares_the_others(
    database: Database, connection: Any, new_tenant: NewTenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = await new_tenant(max_bytes=100)
    first, second = new_image(account.id, 100), new_image(account.id, 50)
    insert_rows = pending._insert

    async def fail_once(connection: Any, images: Sequence[NewImage]) -> set[str]:
        if list(images) == [second]:
            raise asyncpg.InternalServerError("a corrupt page")
        return await insert_rows(connection, images)

    monkeypatch.setattr(pending, "_insert", fail_once)
    batcher = Batcher(partial(insert_pending, database))
    async with running(batcher.run()):
        outcomes = await asyncio.gather(batcher.submit(first), batcher.submit(second), return_exceptions=True)
    assert outcomes[0] is None
    assert isinstance(outcomes[1], asyncpg.InternalServerError)
    assert await stored(connection, account.id) == (100, 1)


async def test_hanging_database_is_awaited_once(
    settings: Settings, new_tenant: NewTenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = await new_tenant()
    batch_sizes = []

    async def hang(connection: Any, images: Sequence[NewImage]) -> set[str]:
        batch_sizes.append(len(images))
        if len(images) == 1:
            await connection.execute("select pg_sleep(5)")
        return set()

    monkeypatch.setattr(pending, "_insert", hang)
    async with Database.open(settings.database_url, connections=2, command_timeout_s=0.2) as impatient:
        outcomes = await insert_pending(impatient, [new_image(account.id, 10) for _ in range(5)], max_outage_wait_s=0.1)
    assert [getattr(outcome, "code", outcome) for outcome in outcomes] == ["database-unavailable"] * 5
    assert batch_sizes == [5, 1]


async def test_racing_inserts_fill_the_quota_exactly(
    database: Database, connection: Any, new_tenant: NewTenant
) -> None:
    accounts = [await new_tenant(max_bytes=10_000) for _ in range(3)]

    async def writer() -> int:
        accepted = 0
        batcher = Batcher(partial(insert_pending, database), limit=7)
        async with running(batcher.run()):
            images = [new_image(accounts[number % 3].id, 100) for number in range(150)]
            outcomes = await asyncio.gather(*(batcher.submit(image) for image in images), return_exceptions=True)
        for outcome in outcomes:
            assert outcome is None or (isinstance(outcome, ServiceError) and outcome.code == "quota-exceeded")
            accepted += outcome is None
        return accepted

    accepted = await asyncio.gather(*(writer() for _ in range(4)))
    assert sum(accepted) == 300
    for account in accounts:
        assert await stored(connection, account.id) == (10_000, 100)
        assert (await load_account(connection, account.id)).used_bytes == 10_000


async def test_failed_image_is_credited_once(database: Database, connection: Any, new_tenant: NewTenant) -> None:
    account = await new_tenant()
    image = new_image(account.id, 500)
    await insert_pending(database, [image])
    failed = await mark_failed(connection, image.id, "unsupported-image")
    assert failed is not None
    assert failed.error == "unsupported-image"
    assert await mark_failed(connection, image.id, "unsupported-image") is None
    after = await load_account(connection, account.id)
    assert (after.used_bytes, after.num_images) == (0, 0)
    assert await connection.fetchval("select image_id from removals") == image.id
