"""Presets: names for rendition parameters, which the URLs of an account may use instead of the parameters."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import NewType

from service.accounts.accounts import lock_account
from service.database import Connection
from service.errors import ServiceError

MAX_PRESETS = 200
PRESET_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")

# What `service.renditions.parsing.check_preset` has accepted.
PresetParameters = NewType("PresetParameters", str)


@dataclass(frozen=True, slots=True)
class Preset:
    """`parameters` are those of a URL: `width=300&height=300&fit=cover`."""

    name: str
    parameters: str
    changed_at: datetime


class TooManyPresets(Exception):
    """The account has `MAX_PRESETS` already, and the name is new."""


# The statement before locks the account, so no concurrent transaction can add a preset that this count misses.
_SET = """
insert into presets (account_id, name, parameters)
select $1, $2, $3 where (select count(*) from presets where account_id = $1 and name <> $2) < $4
on conflict (account_id, name) do update set parameters = excluded.parameters, changed_at = now()
returning name
"""


async def set_preset(connection: Connection, account_name: str, name: str, parameters: PresetParameters) -> None:
    """Creates or replaces a preset. Raises `invalid-parameter`, AccountUnknown and TooManyPresets."""
    if PRESET_NAME.fullmatch(name) is None:
        raise ServiceError(
            "invalid-parameter",
            "A preset's name has 1 to 64 lower-case letters, digits, hyphens and underscores, "
            "and begins with a letter or digit.",
        )
    async with connection.transaction():
        account_id = await lock_account(connection, account_name)
        if await connection.fetchval(_SET, account_id, name, parameters, MAX_PRESETS) is None:
            raise TooManyPresets(account_name)


_DELETE = """
delete from presets using accounts a where account_id = a.id and a.name = $1 and presets.name = $2
returning presets.name
"""


async def delete_preset(connection: Connection, account_name: str, name: str) -> bool:
    """Returns False if there is no preset of this name."""
    return await connection.fetchval(_DELETE, account_name, name) is not None


_LIST = """
select p.name, p.parameters, p.changed_at
from presets p join accounts a on a.id = p.account_id where a.name = $1 order by p.name
"""


async def list_presets(connection: Connection, account_name: str) -> list[Preset]:
    return [Preset(*row) for row in await connection.fetch(_LIST, account_name)]
