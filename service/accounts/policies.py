"""Policies: an account's settings, signing keys and presets for the delivery of its pictures, in one query."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.accounts.accounts import AccountUnknown
from service.database import Connection
from service.ids import AccountId


@dataclass(frozen=True, slots=True)
class Policy:
    """`secrets` are those of the active signing keys, newest first. `presets` are parameters by name."""

    account_id: AccountId
    require_signature: bool
    strip_location: bool
    is_delivered: bool
    secrets: Sequence[str]
    presets: Mapping[str, str]


# The lateral join makes PostgreSQL look up each account by the primary key, whatever its planner estimates.
_FIND = """
select query.id, account.require_signature, account.strip_location, not account.delivery_stopped,
    array(select secret from signing_keys where account_id = query.id and revoked_at is null order by id desc),
    (select json_object_agg(name, parameters order by name)::text from presets where account_id = query.id)
from unnest($1::bigint[]) as query (id)
cross join lateral (
    select require_signature, strip_location, delivery_stopped from accounts where id = query.id limit 1
) account
"""


async def find_policies(connection: Connection, account_ids: Sequence[AccountId]) -> list[Policy | None]:
    """Returns the policies in the order of `account_ids`, for a Batcher; None for an account that was deleted."""
    rows = await connection.fetch(_FIND, account_ids)
    policies = {
        row[0]: Policy(AccountId(row[0]), row[1], row[2], row[3], tuple(row[4]), json.loads(row[5] or "{}"))
        for row in rows
    }
    return [policies.get(account_id) for account_id in account_ids]


async def load_policy(connection: Connection, account_id: AccountId) -> Policy:
    """Raises AccountUnknown."""
    [policy] = await find_policies(connection, [account_id])
    if policy is None:
        raise AccountUnknown(account_id)
    return policy


_SET = """
update accounts set
    require_signature = coalesce($2, require_signature), strip_location = coalesce($3, strip_location)
where name = $1 returning id
"""


async def set_policy(
    connection: Connection, account_name: str, *, require_signature: bool | None, strip_location: bool | None
) -> None:
    """Changes the settings that are not None. Raises AccountUnknown."""
    if await connection.fetchval(_SET, account_name, require_signature, strip_location) is None:
        raise AccountUnknown(account_name)
