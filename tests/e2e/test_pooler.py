"""PgBouncer in transaction mode: each transaction may get another connection to the server."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import redis as sync_redis

from service.config.settings import Settings
from service.database import Database
from service.errors import ServiceError
from service.schema.changes import create_schema, upgrade_schema
from service.schema.definition import Schema, Step
from tests.conftest import Servers
from tests.e2e.conftest import OwnedDatabase
from tests.support.journey import run, travel
from tests.support.pgbouncer import pgbouncer
from tests.support.servers import PASSWORD, QUOTED_PASSWORD, SystemServer

pytestmark = [pytest.mark.slow, pytest.mark.needs("pgbouncer")]

POOL_SIZE = 3
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Pooled:
    """A running PgBouncer in front of the database."""

    server: SystemServer
    database: OwnedDatabase

    def url(self, password: str = QUOTED_PASSWORD) -> str:
        return f"postgresql://{self.database.role}:{password}@127.0.0.1:{self.server.port}/pooled"


@pytest.fixture
def pooled(servers: Servers, owned_database: OwnedDatabase) -> Iterator[Pooled]:
    folder, database = servers.postgres.socket_folder, owned_database
    with pgbouncer(folder, database.name, user=database.role, password=PASSWORD, pool_size=POOL_SIZE) as server:
        yield Pooled(server, database)


async def test_everything_works_through_a_small_pool(
    pooled: Pooled, servers: Servers, settings: Settings, tmp_path: Path
) -> None:
    changes = {"database_url": pooled.url(), "wait_s": 2, "database_connections": 8}
    with sync_redis.Redis.from_url(settings.redis_url) as client:
        await travel(settings.model_copy(update=changes), tmp_path / "logs", lose_jobs=client.flushdb)
    assert await _count_connections(servers, pooled.database) <= POOL_SIZE
    assert "found" in (tmp_path / "logs" / "0-serve.log").read_text()


async def _count_connections(servers: Servers, database: OwnedDatabase) -> int:
    connection = await asyncpg.connect(servers.postgres.dsn)
    try:
        statement = "select count(*) from pg_stat_activity where datname = $1"
        return int(await connection.fetchval(statement, database.name))
    finally:
        await connection.close()


_STATE = """
select current_setting('plan_cache_mode'), current_setting('enable_seqscan'), pg_backend_pid(), pg_sleep(0.01)
"""


async def test_every_statement_is_planned_with_the_settings(pooled: Pooled) -> None:
    await create_schema(pooled.url())

    async def use(number: int) -> tuple[Any, ...]:
        async with database.connection() as connection:
            row = await connection.fetchrow(_STATE)
            assert await connection.fetchval("select $1::int", number) == number
            plan = await connection.fetch("explain select from images where id = $1", str(number))
            assert "Index" in plan[0][0]
            async with connection.transaction():
                assert await connection.fetchval("select current_setting('jit')") == "off"
            with pytest.raises(asyncpg.DivisionByZeroError):
                await connection.fetchval("select 1 / $1::int", 0)
        return tuple(row or ())[:3]

    async with Database.open(pooled.url(), connections=20) as database:
        results = await asyncio.gather(*(use(number) for number in range(200)))
    assert {result[:2] for result in results} == {("force_generic_plan", "off")}
    assert len({pid for _, _, pid in results}) == POOL_SIZE


async def test_nothing_is_left_in_a_session(pooled: Pooled) -> None:
    await create_schema(pooled.url())
    async with Database.open(pooled.url(), connections=10) as database:
        for _ in range(10):
            async with database.connection() as connection:
                await connection.fetch("select $1::text", "x")
    others = [await asyncpg.connect(pooled.url(), statement_cache_size=0) for _ in range(POOL_SIZE)]
    try:
        for other in others:
            transaction = other.transaction()
            await transaction.start()  # so that each has another session
            assert await other.fetchval("select current_setting('enable_seqscan')") == "on"
            assert await other.fetchval("select count(*) from pg_prepared_statements where name <> ''") == 0
    finally:
        for other in others:
            await other.close()


async def test_concurrent_upgrades(pooled: Pooled) -> None:
    current = Schema.load()
    index = "create index concurrently if not exists images_by_size on images (size)"
    newer = replace(
        current,
        version=current.version + 1,
        steps=[*current.steps, Step(current.version + 1, "images by size", index)],
    )
    first = current.steps[0]
    await create_schema(pooled.url(), schema=Schema(first.text, first.version, [first]))
    versions = await asyncio.gather(*(upgrade_schema(pooled.url(), schema=newer) for _ in range(2)))
    assert versions == [newer.version] * 2
    assert await create_schema(pooled.url(), schema=newer) == newer.version


async def test_failed_statement_leaves_no_transaction(pooled: Pooled) -> None:
    async with (
        Database.open(pooled.url(), connections=1, command_timeout_s=0.3) as database,
        Database.open(pooled.url(), connections=1) as others,
    ):
        with pytest.raises(ServiceError, match="database-unavailable"):
            async with database.connection() as connection:
                await connection.fetchval("select pg_sleep($1)", 5)
        async with database.connection() as connection:
            assert await connection.fetchval("select $1::int", 1) == 1
            assert not connection.is_in_transaction()
        async with others.connection() as connection:
            assert await connection.fetchval("select count(*) from pg_stat_activity where state like 'idle in%'") == 0


async def test_restart_of_the_pooler_is_survived(pooled: Pooled) -> None:
    async with Database.open(pooled.url(), connections=2) as database:
        async with database.connection() as connection:
            await connection.fetchval("select 1")
        pooled.server.kill()
        with pytest.raises(ServiceError, match="database-unavailable"):
            async with database.connection() as connection:
                await connection.fetchval("select 1")
        pooled.server.start()
        async with database.connection() as connection:
            assert await connection.fetchval("select 1") == 1


async def test_backup_through_a_pooler_is_refused(pooled: Pooled, settings: Settings, tmp_path: Path) -> None:
    done = run(settings.model_copy(update={"database_url": pooled.url()}), "backup", str(tmp_path / "backup"))
    assert done.returncode == 1
    assert "cannot go through a connection pooler" in done.stderr


@pytest.mark.parametrize("words", [("schema", "--wait", "0"), ("accounts", "list")])
async def test_wrong_password_is_named_in_a_sentence(pooled: Pooled, settings: Settings, words: tuple[str]) -> None:
    done = run(settings.model_copy(update={"database_url": pooled.url("wrong")}), *words)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "wrong" not in done.stderr


async def test_pooler_that_sets_the_planning_itself_needs_no_transactions(
    servers: Servers, owned_database: OwnedDatabase
) -> None:
    """As docs/operations.md says, but for the prepared statements, which this version may not know."""
    line = re.search("^connect_query=.*$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    assert line is not None
    folder, database = servers.postgres.socket_folder, owned_database
    with pgbouncer(
        folder, database.name, user=database.role, password=PASSWORD, pool_size=POOL_SIZE, options=line[0]
    ) as server:
        url = Pooled(server, database).url()
        others = [await asyncpg.connect(url, statement_cache_size=0) for _ in range(POOL_SIZE)]
        for other in others:
            await other.transaction().start()  # so that each has another session
            assert await other.fetchval("select current_setting('plan_cache_mode')") == "force_generic_plan"
            assert await other.fetchval("select current_setting('enable_bitmapscan')") == "off"
        for other in others:
            await other.close()
