"""Connections to PostgreSQL itself, and how a pooler would be recognised. A real one is in tests/e2e/test_pooler.py."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service.database import Database
from service.pooling import Pooler, connect, has_pooler

_IS_PREPARED = "select count(*) from pg_prepared_statements where statement = $1"


async def test_server_itself_is_no_pooler(database_url: str) -> None:
    connection = await connect(database_url)
    assert not await has_pooler(connection)
    await connection.close()


@pytest.mark.parametrize(("pooler", "prepared"), [("auto", 1), ("none", 1), ("transaction", 0)])
async def test_statements_are_prepared_without_a_pooler(database_url: str, pooler: Pooler, prepared: int) -> None:
    async with Database.open(database_url, connections=1, pooler=pooler) as database:
        for _ in range(2):
            async with database.connection() as connection:
                found = await connection.fetchval(_IS_PREPARED, _IS_PREPARED)
                assert await connection.fetchval("select current_setting('enable_seqscan')") == "off"
        assert found == prepared


async def test_finding_no_pooler_leaves_one_connection(database_url: str, connection: Any) -> None:
    count = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    async with Database.open(database_url, connections=4) as database:
        async with database.connection() as other:
            await other.fetchval("select 1")
        assert await connection.fetchval(count) == 1


async def insert_and_fail(database: Database) -> None:
    async with database.connection() as pooled, pooled.transaction():
        await pooled.execute("insert into applied_schema (digest, version) values ($1, $2)", b"x", 1)
        assert await pooled.fetchval("select current_setting('plan_cache_mode')") == "force_generic_plan"
        raise RuntimeError("undo")


async def test_transaction_through_a_pooler_is_one(database_url: str, connection: Any) -> None:
    async with Database.open(database_url, connections=1, pooler="transaction") as database:
        with pytest.raises(RuntimeError, match="undo"):
            await insert_and_fail(database)
        async with database.connection() as pooled:
            assert not pooled.is_in_transaction()
    assert await connection.fetchval("select count(*) from applied_schema where digest = 'x'") == 0


async def test_cancelled_statement_leaves_no_transaction(database_url: str) -> None:
    """Wherever it is cancelled: while the transaction begins, in the statement, or while it is committed."""
    async with Database.open(database_url, connections=1, pooler="transaction") as database:
        for number in range(40):
            async with database.connection() as pooled:
                task = asyncio.create_task(pooled.fetchval("select pg_sleep($1)", 0.002))
                await asyncio.sleep(number * 0.0002)
                task.cancel()
                await asyncio.wait([task])
                assert pooled.is_closed() or not pooled.is_in_transaction()
