"""The pool: what it does to others, and how long it waits for a server."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from service.api.app import create_app
from service.config.settings import Settings
from service.database import Database
from service.errors import ServiceError
from service.storage.local.originals import LocalOriginals


async def test_slow_statement_is_database_unavailable(database_url: str) -> None:
    async with Database.open(database_url, connections=1, command_timeout_s=0.2) as database:
        with pytest.raises(ServiceError, match="database-unavailable"):
            async with database.connection() as connection:
                await connection.execute("select pg_sleep(5)")
        async with database.connection() as connection:
            assert await connection.fetchval("select 1") == 1


async def test_server_that_cancels_nothing_is_given_up_soon(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a server that hangs: a request waits for its statement, but not as long again for the end of that."""

    async def hang(**_: Any) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr("asyncpg.connect_utils._cancel", hang)
    monkeypatch.setattr("service.database._RETURN_TIMEOUT_S", 0.2)
    async with Database.open(database_url, connections=1, command_timeout_s=2) as database:
        async with asyncio.timeout(3):
            with pytest.raises(ServiceError, match="database-unavailable"):
                async with database.connection() as connection:
                    await connection.execute("select pg_sleep(4)")
        assert await find_pid(database)


@pytest.mark.settings(database_url="postgresql://daguerre@127.0.0.1:1/daguerre")
async def test_application_starts_without_a_database(settings: Settings, aiohttp_client: Any) -> None:
    LocalOriginals(
        settings.storage_folder
    ).prepare()  # without a database it is unknown whether the storage may be empty
    api = await aiohttp_client(create_app(settings))
    response = await api.get("/v1/account?key=" + "A" * 40)
    assert (response.status, response.headers["Retry-After"]) == (503, "1")


async def find_pid(database: Database) -> int:
    async with database.connection() as connection:
        return int(await connection.fetchval("select pg_backend_pid()"))


async def test_statements_in_turn_share_a_connection(database_url: str) -> None:
    async with Database.open(database_url, connections=4) as database:
        assert len({await find_pid(database) for _ in range(5)}) == 1


async def test_free_connection_goes_to_a_caller_that_waits(database_url: str) -> None:
    async with Database.open(database_url, connections=1) as database:
        for _ in range(3):
            async with database.connection():
                waiting = [asyncio.create_task(find_pid(database)) for _ in range(3)]
                await asyncio.sleep(0)
            async with asyncio.timeout(1):  # less than the time-out of the pool
                await asyncio.gather(*waiting)


async def use_in_turn(database: Database, times: int, hold_s: float) -> list[BaseException | None]:
    """Uses a connection this many times at once. Returns the error of each."""

    async def use() -> None:
        async with database.connection():
            await asyncio.sleep(hold_s)

    return await asyncio.gather(*(use() for _ in range(times)), return_exceptions=True)


async def test_caller_waits_while_connections_are_returned(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.database._ACQUIRE_TIMEOUT_S", 0.8)
    async with Database.open(database_url, connections=1) as database:
        assert await use_in_turn(database, 8, 0.15) == [None] * 8


async def test_wait_ends_if_no_connection_is_returned(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.database._ACQUIRE_TIMEOUT_S", 0.3)
    async with Database.open(database_url, connections=1) as database, database.connection():
        async with asyncio.timeout(1):
            with pytest.raises(ServiceError, match="database-unavailable"):
                await find_pid(database)


async def test_wait_for_a_turn_is_bounded(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.database._ACQUIRE_TIMEOUT_S", 0.2)
    monkeypatch.setattr("service.database._MAX_TURN_WAIT_S", 0.4)
    async with Database.open(database_url, connections=1) as database:
        errors = await use_in_turn(database, 20, 0.1)
    assert errors[0] is None
    assert {error.code for error in errors if isinstance(error, ServiceError)} == {"database-unavailable"}


async def test_spare_connection_that_the_server_closed_is_replaced(database_url: str, connection: Any) -> None:
    async with Database.open(database_url, connections=1) as database:
        pid = await find_pid(database)
        assert await connection.fetchval("select pg_terminate_backend($1, 5000)", pid)
        async with asyncio.timeout(5):
            while await find_pid_or_none(database) in {None, pid}:
                pass


async def find_pid_or_none(database: Database) -> int | None:
    try:
        return await find_pid(database)
    except ServiceError:
        return None


async def test_connection_of_a_cancelled_statement_serves_the_next(database_url: str) -> None:
    async with Database.open(database_url, connections=1) as database:
        for _ in range(3):
            async with database.connection() as connection:
                sleeping = asyncio.create_task(connection.fetchval("select pg_sleep(60)"))
                await asyncio.sleep(0.05)
                sleeping.cancel()
                await asyncio.wait([sleeping])
            assert await find_pid(database)


async def test_closing_does_not_wait_for_a_connection_that_was_in_use(database_url: str) -> None:
    async with asyncio.timeout(3):  # less than the time-out of closing
        async with AsyncExitStack() as stack, Database.open(database_url, connections=2) as database:
            for _ in range(2):
                await stack.enter_async_context(database.connection())
            closing = asyncio.create_task(stack.aclose())
        await closing
