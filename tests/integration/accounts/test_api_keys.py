"""API keys: hashed, several per account, revoked within five seconds, with the hour of their last use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from service.accounts.accounts import (
    Account,
    AccountUnknown,
    KeyRing,
    create_key,
    find_accounts_by_keys,
    is_key_active,
    list_keys,
    new_key,
    revoke_key,
)
from service.batcher import running
from service.config.settings import Settings
from service.database import Connection, Database
from service.errors import ServiceError
from tests.conftest import NewTenant, Tenant


@pytest.fixture
async def ring(settings: Settings) -> AsyncIterator[KeyRing]:
    async with Database.open(settings.database_url, connections=2) as database, ring_on(database) as ring:
        yield ring


@asynccontextmanager
async def ring_on(database: Database) -> AsyncIterator[KeyRing]:
    ring = KeyRing(database)
    async with running(ring.run()):
        yield ring


async def test_key_is_stored_as_a_hash_only(connection: Any, tenant: Tenant) -> None:
    assert len(tenant.key) == 40
    row = await connection.fetchrow("select * from api_keys")
    assert tenant.key not in str(tuple(row.values()))
    assert row["hint"] == tenant.key[:6]


async def test_keys_of_an_account_are_revoked_separately(connection: Any, tenant: Tenant, ring: KeyRing) -> None:
    second = await create_key(connection, tenant.name)
    assert (await ring.find_account(tenant.key)).id == (await ring.find_account(second)).id == tenant.id
    listed = await list_keys(connection, tenant.name)
    assert [key.hint for key in listed] == [tenant.key[:6], second[:6]]
    assert await revoke_key(connection, listed[0].id) is True
    assert await revoke_key(connection, listed[0].id) is False
    assert [await is_key_active(connection, key) for key in (tenant.key, second)] == [False, True]


async def test_a_revoked_key_stops_within_five_seconds(connection: Any, tenant: Tenant, settings: Settings) -> None:
    now = 1000.0
    async with Database.open(settings.database_url, connections=1) as database:
        ring = KeyRing(database, clock=lambda: now)
        async with running(ring.run()):
            await ring.find_account(tenant.key)
            [key] = await list_keys(connection, tenant.name)
            await revoke_key(connection, key.id)
            now += 3.9
            await ring.find_account(tenant.key)
            now += 1.0
            with pytest.raises(ServiceError) as refusal:
                await ring.find_account(tenant.key)
            assert refusal.value.code == "unauthorized"


async def test_last_use_has_hour_resolution(connection: Any, tenant: Tenant, ring: KeyRing) -> None:
    assert (await list_keys(connection, tenant.name))[0].last_used_at is None
    await ring.find_account(tenant.key)
    [key] = await list_keys(connection, tenant.name)
    assert key.last_used_at == await connection.fetchval("select date_trunc('hour', now())")


async def test_use_within_the_hour_writes_nothing(
    connection: Any, tenant: Tenant, ring: KeyRing, settings: Settings
) -> None:
    await ring.find_account(tenant.key)
    version = "select xmin::text from api_keys"
    before = await connection.fetchval(version)
    async with Database.open(settings.database_url, connections=1) as database, ring_on(database) as other:
        await other.find_account(tenant.key)
    assert await connection.fetchval(version) == before


async def test_a_key_for_an_unknown_account_is_refused(connection: Any, new_tenant: NewTenant) -> None:
    with pytest.raises(AccountUnknown):
        await create_key(connection, "nobody-of-this-name")


async def test_concurrent_lookups_share_a_query(
    connection: Any, tenant: Tenant, new_tenant: NewTenant, ring: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = await new_tenant()
    batch_sizes: list[int] = []

    async def counted(connection: Connection, keys: Sequence[str]) -> list[Account | None]:
        batch_sizes.append(len(keys))
        return await find_accounts_by_keys(connection, keys)

    monkeypatch.setattr("service.accounts.accounts.find_accounts_by_keys", counted)
    cancelled = asyncio.create_task(ring.find_account(tenant.key))
    unknown = asyncio.create_task(ring.find_account(new_key()))
    await asyncio.sleep(0)
    cancelled.cancel()
    keys = [tenant.key, other.key] * 10
    owners = await asyncio.gather(*map(ring.find_account, keys))
    assert [owner.id for owner in owners] == [tenant.id, other.id] * 10
    with pytest.raises(ServiceError, match="unauthorized"):
        await unknown
    assert len(batch_sizes) <= 2
    await asyncio.gather(*map(ring.find_account, keys))
    assert sum(batch_sizes) <= 22


async def test_flood_of_unknown_keys_delays_no_others(ring: KeyRing, tenant: Tenant) -> None:
    """A look-up waits for a few batches of 256 keys, and not for 2000 look-ups. They use one connection."""
    held = max_held = acquired = 0
    acquire = ring._database.connection

    @asynccontextmanager
    async def counted() -> AsyncIterator[Connection]:
        nonlocal held, max_held, acquired
        async with acquire() as connection:
            held += 1
            acquired += 1
            max_held = max(max_held, held)
            yield connection
            held -= 1

    ring._database.connection = counted  # type: ignore[method-assign]
    flood = [asyncio.create_task(ring.find_account(new_key())) for _ in range(2000)]
    await asyncio.sleep(0)
    assert (await ring.find_account(tenant.key)).id == tenant.id
    assert acquired <= 10
    refused = await asyncio.gather(*flood, return_exceptions=True)
    assert {repr(error) for error in refused} == {repr(ServiceError("unauthorized"))}
    assert max_held == 1


async def test_recording_the_same_keys_does_not_block(settings: Settings, connection: Any, tenant: Tenant) -> None:
    keys = [tenant.key, *[await create_key(connection, tenant.name) for _ in range(20)]]
    async with Database.open(settings.database_url, connections=4) as database:

        async def look(order: list[str]) -> None:
            async with database.connection() as own:
                assert None not in await find_accounts_by_keys(own, order)

        for _ in range(5):
            await connection.execute("update api_keys set last_used_at = null")
            async with asyncio.timeout(5):
                await asyncio.gather(look(keys), look(keys[::-1]), look(keys), look(keys[::-1]))
            assert not await connection.fetchval("select exists (select from api_keys where last_used_at is null)")
