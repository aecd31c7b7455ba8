"""The pool and the schema: what they do to others, and how long they wait for a server."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from service.api.app import create_app
from service.database import Database, apply_schema
from service.errors import ServiceError
from service.settings import Settings
from tests.conftest import Client, Tenant


async def vacuum(database_url: str) -> Any:
    """A session with the lock that VACUUM and ANALYZE of the images hold."""
    session = await asyncpg.connect(database_url)
    await session.execute("begin; lock table images in share update exclusive mode")
    return session


async def test_a_start_that_changes_nothing_waits_for_no_table(database_url: str) -> None:
    session = await vacuum(database_url)
    async with asyncio.timeout(1):
        await apply_schema(database_url)
    await session.close()


async def test_a_new_schema_lets_requests_through_while_it_waits_for_a_table(
    database_url: str, connection: Any, api: Client, tenant: Tenant
) -> None:
    await connection.execute("update applied_schema set digest = 'older'")
    session = await vacuum(database_url)
    applying = asyncio.create_task(apply_schema(database_url))
    await asyncio.sleep(0.3)
    async with asyncio.timeout(5):  # the first look-up of a key notes its use, so it writes
        assert (await api.get("/v1/account", headers=tenant.headers)).status == 200
    assert not applying.done()
    await session.close()
    await asyncio.wait_for(applying, 10)
    assert await connection.fetchval("select count(*) from applied_schema where digest <> 'older'") == 1


async def test_a_statement_that_takes_too_long_is_a_database_that_is_away(database_url: str) -> None:
    async with Database.open(database_url, connections=1, command_timeout_s=0.2) as database:
        with pytest.raises(ServiceError, match="database-unavailable"):
            async with database.connection() as connection:
                await connection.execute("select pg_sleep(5)")
        async with database.connection() as connection:
            assert await connection.fetchval("select 1") == 1


@pytest.mark.settings(database_url="postgresql://daguerre@127.0.0.1:1/daguerre")
async def test_without_a_database_an_application_starts_and_says_so(settings: Settings, aiohttp_client: Any) -> None:
    api = await aiohttp_client(create_app(settings))
    response = await api.get("/v1/account?key=" + "A" * 40)
    assert (response.status, response.headers["Retry-After"]) == (503, "1")
