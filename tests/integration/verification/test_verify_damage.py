"""`daguerre verify` beside a PostgreSQL whose files are damaged: every other check is made, and nothing is moved that
a damaged table may claim.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import pytest

from service.config.settings import Settings
from service.ids import ImageId
from service.launcher.embedded.postgres import Postgres
from service.schema.changes import create_schema
from service.schema.definition import Schema
from service.storage.local.originals import LocalOriginals
from tests.conftest import Servers, Tenant
from tests.support.verify import PICTURE, insert, put, verify

pytestmark = pytest.mark.slow

_BLOCK = 8192
_IDS = [f"Image{number:03}" for number in range(300)]
_FILL = """
insert into accounts (name, max_bytes, used_bytes, num_images) values ('demo', 1 << 30, 7, 300);
insert into images (id, account_id, size, sha256, state, tags) select id, 1, $SIZE, '\\x$SHA', 'ready', '{a}'
from unnest(array[$IDS]) as id;
vacuum analyze images;
checkpoint
"""


class Damage(NamedTuple):
    """`offset` is where garbage is written; None removes the file."""

    relation: str
    offset: int | None


DAMAGES = {
    "key": Damage("images_pkey", _BLOCK),
    "key_gone": Damage("images_pkey", None),
    "block": Damage("images", _BLOCK),
    "table_gone": Damage("images", None),
    "search": Damage("images_in_order", 0),
    "accounts": Damage("accounts", 0),
    "removals": Damage("removals_pkey", 0),
    "renditions": Damage("renditions_pkey", 0),
    "schema": Damage("applied_schema", 0),
}


@pytest.fixture(scope="module")
def filled(servers: Servers) -> Iterator[Postgres]:
    """A server with the database `filled`. Each test damages a copy of it."""
    asyncio.run(_execute(servers.postgres.dsn, "create database filled"))
    asyncio.run(create_schema(servers.postgres.dsn_of("filled")))
    ids = ",".join(f"'{image_id}'" for image_id in _IDS)
    sha256 = hashlib.sha256(PICTURE).hexdigest()
    statements = _FILL.replace("$SIZE", str(len(PICTURE))).replace("$SHA", sha256).replace("$IDS", ids)
    asyncio.run(_execute(servers.postgres.dsn_of("filled"), *statements.split(";\n")))
    yield servers.postgres
    asyncio.run(_execute(servers.postgres.dsn, "drop database filled"))


async def _execute(dsn: str, *statements: str) -> None:
    connection = await asyncpg.connect(dsn)
    for statement in statements:
        await connection.execute(statement)
    await connection.close()


async def _find_file(postgres: Postgres, relation: str) -> Path:
    """The relation's file in the copy, which the server has not read yet."""
    connection = await asyncpg.connect(postgres.dsn_of("filled"))
    node = await connection.fetchval("select pg_relation_filenode($1::text::regclass)", relation)
    database = await connection.fetchval("select oid from pg_database where datname = 'damaged'")
    await connection.close()
    return postgres.cluster / f"base/{database}/{node}"


@pytest.fixture
async def damaged(filled: Postgres, name: str) -> AsyncIterator[str]:
    await _execute(filled.dsn, "create database damaged template filled strategy file_copy")
    relation, offset = DAMAGES[name]
    path = await _find_file(filled, relation)
    if offset is None:
        path.unlink()
    else:
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(os.urandom(_BLOCK))
    yield filled.dsn_of("damaged")
    await _execute(filled.dsn, "drop database damaged with (force)")


@pytest.mark.parametrize("name", DAMAGES)
async def test_damage_stops_no_other_check(damaged: str, settings: Settings, name: str) -> None:
    storage = LocalOriginals(settings.storage_folder)
    storage.prepare()
    for image_id in _IDS[1:]:
        put(storage.path(ImageId(image_id)))
    unclaimed = put(storage.path(ImageId("NoImage")))
    result = await verify(settings.model_copy(update={"database_url": damaged}), repair=True)
    assert not result.is_well
    assert any("invalid page" in line or "could not open file" in line for line in result.problems)
    assert any(DAMAGES[name].relation in line for line in result.problems)
    assert all(storage.path(ImageId(image_id)).exists() for image_id in _IDS[1:])
    if name in {"block", "table_gone"}:
        assert unclaimed.exists()
    else:
        assert f"image {_IDS[0]}: its file is missing" in result.problems
        assert result.summary.startswith("300 images")
    if name in {"removals", "accounts", "renditions", "schema", "key"}:
        assert any(f"{unclaimed}: no image belongs to it" in line for line in result.problems)
    if name == "block":
        assert any(line.startswith("table images: 1 of its blocks cannot be read (1)") for line in result.problems)
        assert 100 < int(result.summary.partition(" ")[0]) < len(_IDS)
    if name in {"key", "removals", "renditions", "schema"}:
        assert any("its counters are off" in line for line in result.problems)


async def test_row_missing_in_index_keeps_its_file(
    settings: Settings, database_url: str, connection: Any, tenant: Tenant
) -> None:
    """Without an error of PostgreSQL: the index says that there is no such row."""
    storage = LocalOriginals(settings.storage_folder)
    storage.prepare()
    stored = put(storage.path(ImageId(_IDS[0])))
    ready = "update pg_index set indisready = $1 where indexrelid = 'images_pkey'::regclass"
    await connection.execute(ready, False)
    other = await asyncpg.connect(database_url)
    await insert(other, tenant, image_id=_IDS[0])
    await other.close()
    await connection.execute(ready, True)
    result = await verify(settings, repair=True)
    await connection.execute("reindex index images_pkey")
    assert f"table images: its primary key lacks rows (1, e.g. {_IDS[0]}): reindex it" in result.problems
    assert stored.exists()
    assert (await verify(settings)).is_well


async def test_missing_table_stops_no_other_check(settings: Settings, connection: Any, tenant: Tenant) -> None:
    storage = LocalOriginals(settings.storage_folder)
    storage.prepare()
    await insert(connection, tenant, image_id=_IDS[0])
    unclaimed = put(storage.path(ImageId("NoImage")))
    await connection.execute("alter table removals rename to others")
    result = await verify(settings, repair=True)
    await connection.execute("alter table others rename to removals")
    assert 'table removals: it cannot be read: relation "removals" does not exist' in result.problems
    assert f"image {_IDS[0]}: its file is missing" in result.problems
    assert f"file {unclaimed}: no image belongs to it" in result.problems
    assert unclaimed.exists()


def test_schema_lists_its_tables() -> None:
    assert {"accounts", "images", "removals", "scrub"} < set(Schema.load().tables)
