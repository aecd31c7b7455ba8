"""What an account has decided about the delivery of its pictures, in one look."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.accounts.records import AccountUnknown
from service.database import Connection
from service.ids import AccountId


@dataclass(frozen=True, slots=True)
class Policy:
    """`secrets` are those of the live signing keys, newest first; `presets` are parameters by their names."""

    account_id: AccountId
    require_signature: bool
    strip_location: bool
    secrets: Sequence[str]
    presets: Mapping[str, str]


# Each is found by the primary key, whatever the planner would make of a join.
_FIND = """
select asked.id, account.require_signature, account.strip_location,
    array(select secret from signing_keys where account_id = asked.id and revoked_at is null order by id desc),
    (select json_object_agg(name, parameters order by name)::text from presets where account_id = asked.id)
from unnest($1::bigint[]) with ordinality as asked (id, place)
cross join lateral (
    select require_signature, strip_location from accounts where id = asked.id limit 1
) account
order by asked.place
"""


async def find_policies(connection: Connection, account_ids: Sequence[AccountId]) -> list[Policy]:
    """In order, for a Batcher. Raises AccountUnknown if one of them is not there."""
    rows = await connection.fetch(_FIND, account_ids)
    found = [
        Policy(AccountId(account_id), require_signature, strip_location, tuple(secrets), json.loads(presets or "{}"))
        for account_id, require_signature, strip_location, secrets, presets in rows
    ]
    if len(found) < len(account_ids):
        raise AccountUnknown(*sorted(set(account_ids) - {policy.account_id for policy in found}))
    return found


_SET = """
update accounts set
    require_signature = coalesce($2, require_signature), strip_location = coalesce($3, strip_location)
where name = $1 returning id
"""


async def set_policy(
    connection: Connection, account_name: str, *, require_signature: bool | None, strip_location: bool | None
) -> None:
    """None leaves it as it is. Raises AccountUnknown."""
    if await connection.fetchval(_SET, account_name, require_signature, strip_location) is None:
        raise AccountUnknown(account_name)
