"""The pool and the schema: what they do to others, and how long they wait for a server."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from service.api.app import create_app
from service.config.settings import Settings
from service.database import Database, Schema, SchemaTooNew, apply_schema
from service.errors import ServiceError
from service.storage.local.originals import LocalOriginals
from tests.conftest import Client, Tenant
from tests.support.commands import daguerre, daguerre_process


async def vacuum(database_url: str) -> Any:
    """A session with the lock that VACUUM and ANALYZE of the images hold."""
    session = await asyncpg.connect(database_url)
    await session.execute("begin; lock table images in share update exclusive mode")
    return session


async def test_unchanged_schema_waits_for_no_table(database_url: str) -> None:
    session = await vacuum(database_url)
    async with asyncio.timeout(1):
        await apply_schema(database_url)
    await session.close()


@pytest.mark.slow
async def test_waiting_schema_change_blocks_no_request(
    database_url: str, connection: Any, api: Client, tenant: Tenant
) -> None:
    await connection.execute("update applied_schema set version = 1")
    session = await vacuum(database_url)
    applying = asyncio.create_task(apply_schema(database_url))
    await asyncio.sleep(0.3)
    async with asyncio.timeout(5):  # the first look-up of a key records its use, so it writes
        assert (await api.get("/v1/account", headers=tenant.headers)).status == 200
    assert not applying.done()
    await session.close()
    await asyncio.wait_for(applying, 10)
    assert await connection.fetchval("select array_agg(version) from applied_schema") == [Schema.load().version]


# Of the statements of schema.sql, by its version. Changed statements need a higher version and a line here, in place of
# the last one if that version was never released.
STATEMENTS = {
    2: "6dbcb3ed15f4c1918861cb94c9370c39e13fe6e10d5dd3a2c7e8e90342ee6a4d",
    3: "cf1ef21420fec0b20dc2967de6d8ecc6719424e84d493117863294acdc501448",
}


def test_changed_statements_have_a_new_version() -> None:
    schema = Schema.load()
    lines = [re.sub(r"\s*--.*", "", line).strip() for line in schema.text.splitlines()]
    digest = hashlib.sha256("\n".join(filter(None, lines)).encode()).hexdigest()
    assert STATEMENTS.get(schema.version) == digest
    assert schema.version == max(STATEMENTS)


@pytest.fixture
async def restored(connection: Any) -> AsyncIterator[None]:
    """The database serves other tests after this one."""
    yield
    await connection.execute("update applied_schema set version = $1", Schema.load().version)


@pytest.mark.usefixtures("restored")
class TestVersions:
    async def test_an_older_version_refuses_newer_tables(self, database_url: str, connection: Any) -> None:
        version = Schema.load().version
        await connection.execute("update applied_schema set version = $1", version + 1)
        with pytest.raises(SchemaTooNew, match=f"schema {version + 1}; this one knows {version}"):
            await apply_schema(database_url)
        result = daguerre("schema", "--wait", "0", database_url=database_url)
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr.startswith("Error: The database has tables of a newer Daguerre")
        assert result.stderr.count("\n") == 1
        assert await connection.fetchval("select version from applied_schema") == version + 1

    async def test_an_older_schema_changes_nothing(self, database_url: str, connection: Any) -> None:
        """E.g. the function that keeps the tags stays the newer one."""
        older = Schema.parse("-- version: 1\ncreate table of_version_1 ()")
        with pytest.raises(SchemaTooNew):
            await apply_schema(database_url, schema=older)
        assert await connection.fetchval("select to_regclass('of_version_1')") is None

    async def test_equal_versions_change_nothing(self, database_url: str) -> None:
        equal = Schema.parse(f"-- version: {Schema.load().version}\nselect 1 / 0")
        await apply_schema(database_url, schema=equal)

    async def test_tables_without_a_version_are_the_first(self, database_url: str, connection: Any) -> None:
        await connection.execute("alter table applied_schema drop column version")
        await apply_schema(database_url)
        await apply_schema(database_url)
        assert await connection.fetchval("select array_agg(version) from applied_schema") == [Schema.load().version]

    async def test_the_first_version_cannot_go_back(self, connection: Any) -> None:
        """It has no version number, and was applied unless its own digest was the recorded one."""
        with pytest.raises(asyncpg.NotNullViolationError):
            await connection.execute(
                "begin; delete from applied_schema; insert into applied_schema (digest) values ('first'); commit"
            )
        await connection.execute("rollback")
        assert await connection.fetchval("select array_agg(version) from applied_schema") == [Schema.load().version]


@pytest.mark.slow
async def test_up_refuses_newer_tables(database_url: str, connection: Any, restored: None, tmp_path: Path) -> None:
    await connection.execute("update applied_schema set version = version + 1")
    environment = {"DAGUERRE_DATABASE_URL": database_url, "DAGUERRE_DATA": str(tmp_path / "data")}
    result = await asyncio.to_thread(daguerre_process, "up", "--port", "0", **environment)
    assert result.returncode == 1
    assert "Error: The database has tables of a newer Daguerre" in result.stderr
    assert "Traceback" not in result.stderr


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
