"""Signing keys: the secrets with which the owner of an account signs URLs. Two can be active at a time, for a
rotation.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime

from service.accounts.accounts import lock_account
from service.database import Connection

MAX_ACTIVE = 2

_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One row of a list. `hint` is the beginning of the secret."""

    id: int
    hint: str
    created_at: datetime
    revoked_at: datetime | None


class TooManySigningKeys(Exception):
    """The account has `MAX_ACTIVE` active keys already."""


# The statement before locks the account, so no concurrent transaction can add a key that this count misses.
_CREATE = """
insert into signing_keys (account_id, secret)
select $1, $2 where (select count(*) from signing_keys where account_id = $1 and revoked_at is null) < $3
returning id
"""


async def create_signing_key(connection: Connection, account_name: str) -> str:
    """Returns a new secret of 43 characters. Raises AccountUnknown and TooManySigningKeys."""
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    async with connection.transaction():
        account_id = await lock_account(connection, account_name)
        if await connection.fetchval(_CREATE, account_id, secret, MAX_ACTIVE) is None:
            raise TooManySigningKeys(account_name)
    return secret


_LIST = """
select k.id, left(k.secret, 6), k.created_at, k.revoked_at
from signing_keys k join accounts a on a.id = k.account_id where a.name = $1 order by k.id
"""


async def list_signing_keys(connection: Connection, account_name: str) -> list[SigningKey]:
    return [SigningKey(*row) for row in await connection.fetch(_LIST, account_name)]


_REVOKE = "update signing_keys set revoked_at = now() where id = $1 and revoked_at is null returning id"


async def revoke_signing_key(connection: Connection, key_id: int) -> bool:
    """Returns False if there is no such key, or if it is revoked already."""
    return await connection.fetchval(_REVOKE, key_id) is not None
