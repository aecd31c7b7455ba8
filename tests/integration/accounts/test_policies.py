"""What an account decides about delivery: signing keys, presets, policies."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from service.accounts.accounts import AccountUnknown
from service.accounts.policies import Policy, find_policies, load_policy, set_policy
from service.accounts.presets import MAX_PRESETS, TooManyPresets, delete_preset, list_presets, set_preset
from service.accounts.signing_keys import TooManySigningKeys, create_signing_key, list_signing_keys, revoke_signing_key
from service.config.settings import Settings
from service.database import Database
from service.errors import ServiceError
from service.ids import AccountId
from service.renditions.parsing import check_preset
from tests.conftest import NewTenant, Tenant


async def policy_of(connection: Any, tenant: Tenant) -> Policy:
    return await load_policy(connection, tenant.id)


async def test_default_policy_is_open(connection: Any, tenant: Tenant) -> None:
    assert await policy_of(connection, tenant) == Policy(
        tenant.id, require_signature=False, strip_location=False, is_delivered=True, secrets=(), presets={}
    )


async def test_policy_change_keeps_other_settings(connection: Any, tenant: Tenant, new_tenant: NewTenant) -> None:
    other = await new_tenant()
    for require, strip, decided in [
        (True, None, (True, False)),
        (None, True, (True, True)),
        (None, None, (True, True)),
        (False, None, (False, True)),
    ]:
        await set_policy(connection, tenant.name, require_signature=require, strip_location=strip)
        policy = await policy_of(connection, tenant)
        assert (policy.require_signature, policy.strip_location) == decided
    assert (await policy_of(connection, other)).strip_location is False


async def test_policies_come_in_the_order_of_ids(settings: Settings, new_tenant: NewTenant) -> None:
    tenants = [await new_tenant() for _ in range(4)]
    async with Database.open(settings.database_url, connections=1) as database, database.connection() as connection:
        secrets = {}
        for tenant in tenants[1:]:
            secrets[tenant.id] = await create_signing_key(connection, tenant.name)
            await set_preset(connection, tenant.name, "thumb", check_preset(f"width={tenant.id}"))
        account_ids = [tenants[place].id for place in (2, 0, 3, 2, 1)]
        policies = [policy for policy in await find_policies(connection, account_ids) if policy is not None]
        assert await find_policies(connection, []) == []
    assert [policy.account_id for policy in policies] == account_ids
    assert [list(policy.secrets) for policy in policies] == [[secrets[i]] if i in secrets else [] for i in account_ids]
    assert [policy.presets for policy in policies] == [
        {"thumb": f"width={i}"} if i in secrets else {} for i in account_ids
    ]


async def test_a_deleted_account_has_no_policy(connection: Any, tenant: Tenant) -> None:
    assert await find_policies(connection, [AccountId(999), tenant.id]) == [None, await policy_of(connection, tenant)]
    with pytest.raises(AccountUnknown, match="999"):
        await load_policy(connection, AccountId(999))


async def test_policy_has_live_secrets_newest_first(connection: Any, tenant: Tenant) -> None:
    first = await create_signing_key(connection, tenant.name)
    second = await create_signing_key(connection, tenant.name)
    assert len(first) == len(second) == 43
    assert (await policy_of(connection, tenant)).secrets == (second, first)
    listed = await list_signing_keys(connection, tenant.name)
    assert [key.hint for key in listed] == [first[:6], second[:6]]
    assert await revoke_signing_key(connection, listed[0].id) is True
    assert await revoke_signing_key(connection, listed[0].id) is False
    assert (await policy_of(connection, tenant)).secrets == (second,)
    assert [key.revoked_at is None for key in await list_signing_keys(connection, tenant.name)] == [False, True]


async def test_third_live_signing_key_is_refused(connection: Any, tenant: Tenant) -> None:
    for _ in range(2):
        await create_signing_key(connection, tenant.name)
    with pytest.raises(TooManySigningKeys):
        await create_signing_key(connection, tenant.name)
    [first, _] = await list_signing_keys(connection, tenant.name)
    await revoke_signing_key(connection, first.id)
    await create_signing_key(connection, tenant.name)
    assert len((await policy_of(connection, tenant)).secrets) == 2


async def race(url: str, times: int, work: Callable[[Any, int], Awaitable[None]]) -> list[BaseException]:
    """Returns the errors of this call on several connections at once."""
    connections = [await asyncpg.connect(url) for _ in range(times)]
    try:
        outcomes = await asyncio.gather(*map(work, connections, range(times)), return_exceptions=True)
    finally:
        for connection in connections:
            await connection.close()
    return [outcome for outcome in outcomes if outcome is not None]


async def test_racing_creations_leave_two_live_keys(connection: Any, tenant: Tenant, database_url: str) -> None:
    async def create(own: Any, _: int) -> None:
        await create_signing_key(own, tenant.name)

    refusals = await race(database_url, 8, create)
    assert [type(refusal) for refusal in refusals] == [TooManySigningKeys] * 6
    assert len((await policy_of(connection, tenant)).secrets) == 2


async def test_key_creation_waits_for_a_concurrent_one(connection: Any, tenant: Tenant, database_url: str) -> None:
    await create_signing_key(connection, tenant.name)
    other = await asyncpg.connect(database_url)
    async with connection.transaction():
        await create_signing_key(connection, tenant.name)
        third = asyncio.create_task(create_signing_key(other, tenant.name))
        await asyncio.sleep(0.2)
        assert not third.done()
    with pytest.raises(TooManySigningKeys):
        await third
    await other.close()


async def test_presets_are_set_changed_listed_and_deleted(
    connection: Any, tenant: Tenant, new_tenant: NewTenant
) -> None:
    other = await new_tenant()
    await set_preset(connection, other.name, "card", check_preset("width=1"))
    await set_preset(connection, tenant.name, "thumb", check_preset("width=100"))
    await set_preset(connection, tenant.name, "card", check_preset("width=300&height=300&fit=cover"))
    [_, before] = await list_presets(connection, tenant.name)
    await set_preset(connection, tenant.name, "thumb", check_preset("width=120"))
    listed = await list_presets(connection, tenant.name)
    assert [(preset.name, preset.parameters) for preset in listed] == [
        ("card", "width=300&height=300&fit=cover"),
        ("thumb", "width=120"),
    ]
    assert listed[1].changed_at > before.changed_at
    assert await delete_preset(connection, tenant.name, "card") is True
    assert await delete_preset(connection, tenant.name, "card") is False
    assert (await policy_of(connection, tenant)).presets == {"thumb": "width=120"}
    assert (await policy_of(connection, other)).presets == {"card": "width=1"}


@pytest.mark.parametrize("name", ["a", "0", "a" * 64, "red-card_2"])
async def test_preset_names_that_are_accepted(connection: Any, tenant: Tenant, name: str) -> None:
    await set_preset(connection, tenant.name, name, check_preset("width=1"))
    assert [preset.name for preset in await list_presets(connection, tenant.name)] == [name]


@pytest.mark.parametrize("name", ["", "A", "-a", "_a", "a" * 65, "a b", "a\n", "é", "a\x00"])
async def test_invalid_preset_name_is_refused(connection: Any, tenant: Tenant, name: str) -> None:
    with pytest.raises(ServiceError, match="invalid-parameter: A preset's name has"):
        await set_preset(connection, tenant.name, name, check_preset("width=1"))
    assert await list_presets(connection, tenant.name) == []


@pytest.mark.parametrize("parameters", ["", "width=wide", "colour=red", "preset=thumb", "width=1&" * 126])
async def test_invalid_preset_parameters_are_refused(connection: Any, tenant: Tenant, parameters: str) -> None:
    await set_preset(connection, tenant.name, "thumb", check_preset("width=1"))
    with pytest.raises(ServiceError, match="invalid-parameter"):
        await set_preset(connection, tenant.name, "thumb", check_preset(parameters))
    assert [preset.parameters for preset in await list_presets(connection, tenant.name)] == ["width=1"]


async def test_preset_limit_holds_in_a_race(connection: Any, tenant: Tenant, database_url: str) -> None:
    await connection.execute(
        "insert into presets select $1, 'p' || n, 'width=1' from generate_series(1, $2) n", tenant.id, MAX_PRESETS - 1
    )

    async def add(own: Any, number: int) -> None:
        await set_preset(own, tenant.name, f"new-{number}", check_preset("width=1"))

    refusals = await race(database_url, 4, add)
    assert [type(refusal) for refusal in refusals] == [TooManyPresets] * 3
    await set_preset(connection, tenant.name, "p1", check_preset("width=2"))  # one that is there can still be changed
    presets = (await policy_of(connection, tenant)).presets
    assert len(presets) == MAX_PRESETS
    assert presets["p1"] == "width=2"


async def test_deleted_account_has_no_keys_or_presets(connection: Any, tenant: Tenant) -> None:
    await create_signing_key(connection, tenant.name)
    await set_preset(connection, tenant.name, "thumb", check_preset("width=1"))
    await connection.execute("delete from accounts")
    for table in ("signing_keys", "presets"):
        assert await connection.fetchval(f"select count(*) from {table}") == 0


async def test_an_unknown_account_is_refused(connection: Any) -> None:
    with pytest.raises(AccountUnknown):
        await create_signing_key(connection, "nobody")
    with pytest.raises(AccountUnknown):
        await set_preset(connection, "nobody", "thumb", check_preset("width=1"))
    with pytest.raises(AccountUnknown):
        await set_policy(connection, "nobody", require_signature=True, strip_location=None)
    assert await delete_preset(connection, "nobody", "thumb") is False
