"""Keys: hashed, several an account, revocable within five seconds, last use kept to the hour."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.accounts import Account, AccountUnknown
from service.database import Database
from service.errors import ServiceError
from service.keys import KeyRing, create_key, key_is_active, list_keys, revoke_key
from service.settings import Settings
from tests.conftest import NewTenant, Tenant


@pytest.fixture
async def ring(settings: Settings) -> AsyncIterator[KeyRing]:
    async with Database.open(settings.database_url, connections=2) as database:
        yield KeyRing(database)


async def test_a_key_has_40_characters_and_is_stored_as_a_hash_only(connection: Any, tenant: Tenant) -> None:
    assert len(tenant.key) == 40
    row = await connection.fetchrow("select * from api_keys")
    assert tenant.key not in str(tuple(row.values()))
    assert row["hint"] == tenant.key[:6]


async def test_an_account_has_several_keys_and_each_is_revoked_alone(
    connection: Any, tenant: Tenant, ring: KeyRing
) -> None:
    second = await create_key(connection, tenant.name)
    assert (await ring.owner(tenant.key)).id == (await ring.owner(second)).id == tenant.id
    listed = await list_keys(connection, tenant.name)
    assert [key.hint for key in listed] == [tenant.key[:6], second[:6]]
    assert await revoke_key(connection, listed[0].id) is True
    assert await revoke_key(connection, listed[0].id) is False
    assert [await key_is_active(connection, key) for key in (tenant.key, second)] == [False, True]


async def test_a_revoked_key_stops_within_five_seconds(
    connection: Any, tenant: Tenant, ring: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("service.keys.time.monotonic", lambda: now)
    await ring.owner(tenant.key)
    [key] = await list_keys(connection, tenant.name)
    await revoke_key(connection, key.id)
    now += 3.9
    await ring.owner(tenant.key)
    now += 1.0
    with pytest.raises(ServiceError) as refusal:
        await ring.owner(tenant.key)
    assert refusal.value.code == "unauthorized"


async def test_the_last_use_is_kept_to_the_hour(connection: Any, tenant: Tenant, ring: KeyRing) -> None:
    assert (await list_keys(connection, tenant.name))[0].last_used_at is None
    await ring.owner(tenant.key)
    [key] = await list_keys(connection, tenant.name)
    assert key.last_used_at == await connection.fetchval("select date_trunc('hour', now())")


async def test_a_use_within_the_hour_writes_nothing(
    connection: Any, tenant: Tenant, ring: KeyRing, settings: Settings
) -> None:
    await ring.owner(tenant.key)
    version = "select xmin::text from api_keys"
    before = await connection.fetchval(version)
    async with Database.open(settings.database_url, connections=1) as database:
        await KeyRing(database).owner(tenant.key)
    assert await connection.fetchval(version) == before


async def test_a_key_for_an_unknown_account_is_refused(connection: Any, new_tenant: NewTenant) -> None:
    with pytest.raises(AccountUnknown):
        await create_key(connection, "nobody-of-this-name")


async def test_requests_that_ask_at_once_share_one_look(
    tenant: Tenant, ring: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    look_up = ring._look_up

    async def counted(key: str) -> Account:
        nonlocal looks
        looks += 1
        return await look_up(key)

    monkeypatch.setattr(ring, "_look_up", counted)
    cancelled = asyncio.create_task(ring.owner(tenant.key))
    await asyncio.sleep(0)
    cancelled.cancel()
    owners = await asyncio.gather(*(ring.owner(tenant.key) for _ in range(20)))
    assert {owner.id for owner in owners} == {tenant.id}
    assert looks == 1
