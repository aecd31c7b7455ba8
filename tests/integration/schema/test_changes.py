"""Creating and upgrading the tables: what changes, what does not, and what other processes notice of it."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from service.api.app import create_app
from service.config.settings import Settings
from service.schema.applied import SchemaTooNew, SchemaTooOld, find_schema_version
from service.schema.changes import create_schema, upgrade_schema
from service.schema.definition import Schema, Step
from tests.conftest import Client, Tenant
from tests.integration.schema.conftest import OtherDatabase
from tests.support.commands import daguerre, daguerre_process
from tests.support.schema_shapes import describe_shape, read_rows
from tests.support.waiting import until

VERSION = Schema.load().version
RECORDED = "select array_agg(version order by version) from applied_schema"


def with_step(text: str) -> Schema:
    """Returns the schema of a next version, which has this step."""
    schema = Schema.load()
    step = Step(schema.version + 1, "a test", text)
    return dataclasses.replace(schema, version=step.version, steps=[*schema.steps, step])


async def forget_storage(database: OtherDatabase) -> None:
    """A start is refused before it looks at the version if images are stored and their storage is missing."""
    await database.connection.execute("delete from images; delete from storage")


async def lock_images(url: str) -> Any:
    """Returns a session with the lock that VACUUM and ANALYZE of the images hold."""
    session = await asyncpg.connect(url)
    await session.execute("begin; lock table images in share update exclusive mode")
    return session


class TestCreating:
    async def test_empty_database_gets_all_tables(self, new: OtherDatabase) -> None:
        assert await create_schema(new.url) == VERSION
        assert await new.connection.fetchval(RECORDED) == [VERSION]
        assert set(Schema.load().tables) == (await read_rows(new.connection)).keys()

    async def test_several_processes_may_create_the_tables(self, new: OtherDatabase) -> None:
        await asyncio.gather(*(create_schema(new.url) for _ in range(4)))
        assert await new.connection.fetchval(RECORDED) == [VERSION]

    async def test_current_tables_are_not_waited_for(self, database_url: str) -> None:
        session = await lock_images(database_url)
        async with asyncio.timeout(1):
            await create_schema(database_url)
            await upgrade_schema(database_url)
        await session.close()

    async def test_tables_of_another_program_are_not_used(self, new: OtherDatabase) -> None:
        await new.connection.execute("create table accounts (name text)")
        done = daguerre("schema", database_url=new.url)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert 'relation "accounts" already exists' in done.stderr
        assert await new.connection.fetchval("select to_regclass('applied_schema')") is None


class TestUpgrading:
    async def test_upgraded_shape_is_the_new_one(self, older: OtherDatabase, connection: Any) -> None:
        await upgrade_schema(older.url)
        assert await describe_shape(older.connection) == await describe_shape(connection)

    async def test_rows_stay(self, older: OtherDatabase) -> None:
        before = await read_rows(older.connection)
        assert [table for table, rows in before.items() if not rows] == []
        await upgrade_schema(older.url)
        after = await read_rows(older.connection)
        del before["applied_schema"]
        for table, rows in before.items():
            kept = [{column: row[column] for column in rows[0]} for row in after[table]]
            assert sorted(map(repr, kept)) == sorted(map(repr, rows)), table

    async def test_each_step_is_recorded_with_its_time(self, older: OtherDatabase) -> None:
        await upgrade_schema(older.url)
        assert await older.connection.fetchval(RECORDED) == list(range(3, VERSION + 1))
        assert await older.connection.fetchval("select count(*) from applied_schema where applied_at > now()") == 0

    async def test_command_names_the_steps(self, older: OtherDatabase) -> None:
        done = daguerre("schema", "upgrade", database_url=older.url)
        assert (done.returncode, done.stdout) == (0, "")
        assert "Step 4 (unfinished uploads): done in " in done.stderr
        assert done.stderr.endswith(f"The schema is up to date (version {VERSION}).\n")
        again = daguerre("schema", "upgrade", database_url=older.url)
        assert (again.returncode, again.stderr) == (0, f"The schema is up to date (version {VERSION}).\n")

    async def test_upgrade_creates_tables_in_an_empty_database(self, new: OtherDatabase) -> None:
        assert daguerre("schema", "upgrade", database_url=new.url).returncode == 0
        assert await new.connection.fetchval(RECORDED) == [VERSION]

    async def test_several_upgrades_apply_each_step_once(self, older: OtherDatabase) -> None:
        await asyncio.gather(*(upgrade_schema(older.url) for _ in range(4)))
        assert await older.connection.fetchval(RECORDED) == list(range(3, VERSION + 1))

    async def test_failed_step_changes_nothing(self, older: OtherDatabase) -> None:
        await upgrade_schema(older.url)
        shape = await describe_shape(older.connection)
        with pytest.raises(asyncpg.DivisionByZeroError):
            await upgrade_schema(older.url, schema=with_step("create table half (); select 1 / 0"))
        assert await describe_shape(older.connection) == shape
        assert await find_schema_version(older.connection) == VERSION

    async def test_tables_before_the_kept_version_are_upgraded(self, older: OtherDatabase, connection: Any) -> None:
        """Of a database that has no version number, no tags, and no policies of accounts."""
        await older.connection.execute("""
            drop table image_tags, signing_keys, presets;
            drop function keep_image_tags cascade;
            alter table accounts drop column strip_location;
            alter table applied_schema drop column version
        """)
        await upgrade_schema(older.url)
        assert await describe_shape(older.connection) == await describe_shape(connection)
        tags = "select string_agg(tag || image_id, ' ' order by tag, image_id) from image_tags"
        assert await older.connection.fetchval(tags) == "aAAAAAAA bAAAAAAA"
        await older.connection.execute("update images set state = 'ready', tags = '{c}' where state <> 'failed'")
        assert await older.connection.fetchval(tags) == "cAAAAAAA cPENDING"
        await older.connection.execute("delete from images")
        assert await older.connection.fetchval(tags) is None


class TestRefusals:
    async def test_schema_changes_no_older_tables(self, older: OtherDatabase) -> None:
        shape = await describe_shape(older.connection)
        done = daguerre("schema", database_url=older.url)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert f"(schema 3; this version needs {VERSION}): run `daguerre schema upgrade`" in done.stderr
        assert "4 (unfinished uploads)" in done.stderr
        with pytest.raises(SchemaTooOld):
            await create_schema(older.url)
        assert await describe_shape(older.connection) == shape

    async def test_start_of_the_api_changes_no_older_tables(
        self, older: OtherDatabase, settings: Settings, aiohttp_client: Any
    ) -> None:
        await forget_storage(older)
        shape = await describe_shape(older.connection)
        (settings.storage_folder / "incoming").mkdir(exist_ok=True)
        api = await aiohttp_client(create_app(settings.model_copy(update={"database_url": older.url})))
        readiness = await (await api.get("/readyz")).json()
        assert "daguerre schema upgrade" in readiness["reasons"]["database"]
        assert await describe_shape(older.connection) == shape

    @pytest.mark.parametrize("command", [("schema",), ("schema", "upgrade")])
    async def test_newer_tables_are_refused(self, older: OtherDatabase, command: tuple[str, ...]) -> None:
        await upgrade_schema(older.url, schema=with_step("create table newer ()"))
        shape = await describe_shape(older.connection)
        done = daguerre(*command, "--wait", "0", database_url=older.url)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert done.stderr.startswith("Error: The database has tables of a newer Daguerre")
        for change in (create_schema, upgrade_schema):
            with pytest.raises(SchemaTooNew, match=f"schema {VERSION + 1}; this one knows {VERSION}"):
                await change(older.url)
        assert await describe_shape(older.connection) == shape

    async def test_the_first_version_cannot_go_back(self, older: OtherDatabase) -> None:
        """It has no version number, and was applied unless its own digest was the recorded one."""
        await upgrade_schema(older.url)
        with pytest.raises(asyncpg.NotNullViolationError):
            await older.connection.execute("insert into applied_schema (digest) values ('first')")

    @pytest.mark.slow
    @pytest.mark.parametrize("is_newer", [True, False])
    async def test_up_changes_no_configured_database(
        self, older: OtherDatabase, tmp_path: Path, *, is_newer: bool
    ) -> None:
        await forget_storage(older)
        if is_newer:
            await upgrade_schema(older.url, schema=with_step("create table newer ()"))
        shape = await describe_shape(older.connection)
        environment = {"DAGUERRE_DATABASE_URL": older.url, "DAGUERRE_DATA": str(tmp_path / "data")}
        done = await asyncio.to_thread(daguerre_process, "up", "--port", "0", **environment)
        assert done.returncode == 1
        age = "a newer" if is_newer else "an older"
        assert f"Error: The database has tables of {age} Daguerre" in done.stderr
        assert "Traceback" not in done.stderr
        assert await describe_shape(older.connection) == shape


class TestLocks:
    @pytest.mark.slow
    async def test_waiting_step_blocks_no_request(
        self, database_url: str, connection: Any, api: Client, tenant: Tenant
    ) -> None:
        schema = with_step("alter table images add column extra text; alter table images drop column extra")
        session = await lock_images(database_url)
        lines: list[str] = []
        upgrading = asyncio.create_task(upgrade_schema(database_url, schema=schema, report=lines.append))
        await until(lambda: any("a table is in use" in line for line in lines))
        async with asyncio.timeout(5):  # the first look-up of a key records its use, so it writes
            assert (await api.get("/v1/account", headers=tenant.headers)).status == 200
        assert not upgrading.done()
        await session.close()
        assert await asyncio.wait_for(upgrading, 10) == schema.version
        await connection.execute("delete from applied_schema where version > $1", VERSION)  # for the next test

    async def test_second_process_waits_for_the_first(self, older: OtherDatabase) -> None:
        schema = with_step("select pg_sleep(1)")
        reports: list[list[str]] = [[], []]
        await asyncio.gather(*(upgrade_schema(older.url, schema=schema, report=lines.append) for lines in reports))
        waited = [any("Another process" in line for line in lines) for lines in reports]
        assert sorted(waited) == [False, True]
        assert await older.connection.fetchval(RECORDED) == list(range(3, schema.version + 1))


class TestConcurrentIndexes:
    STEP = "-- A comment.\ncreate unique index concurrently if not exists images_once on images (size);\n"

    async def test_index_is_created_beside_writers(self, older: OtherDatabase) -> None:
        """A transaction that has written to the table delays it, and the table takes writes meanwhile."""
        await older.connection.execute("update images set size = 10 + length(id) + ascii(id)")
        writer = await asyncpg.connect(older.url)
        await writer.execute("begin; update images set width = 1 where id = 'AAAAAAA'")
        upgrading = asyncio.create_task(upgrade_schema(older.url, schema=with_step(self.STEP)))
        waits = "select exists (select from pg_stat_activity where wait_event = 'virtualxid')"
        await until(lambda: older.connection.fetchval(waits))
        await older.connection.execute("update images set width = 2 where id = 'PENDING'")
        assert not upgrading.done()
        await writer.execute("commit")
        await writer.close()
        await upgrading
        assert await self.is_valid(older)

    async def test_index_does_not_wait_for_processes_that_wait_for_it(self, older: OtherDatabase) -> None:
        schema = with_step("create index concurrently if not exists images_once on images (size);")
        async with asyncio.timeout(20):
            await asyncio.gather(*(upgrade_schema(older.url, schema=schema) for _ in range(3)))
        assert await self.is_valid(older)

    async def test_invalid_index_is_made_again(self, older: OtherDatabase) -> None:
        schema = with_step(self.STEP)
        with pytest.raises(asyncpg.UniqueViolationError):  # it leaves what an interruption leaves
            await upgrade_schema(older.url, schema=schema)
        assert not await self.is_valid(older)
        assert await find_schema_version(older.connection) == VERSION
        await older.connection.execute("update images set size = 10 + length(id) + ascii(id)")
        await upgrade_schema(older.url, schema=schema)
        assert await self.is_valid(older)
        assert await find_schema_version(older.connection) == schema.version

    async def test_complete_index_is_not_made_again(self, older: OtherDatabase) -> None:
        """As after an interruption between the index and its record."""
        schema = with_step(self.STEP)
        await older.connection.execute("update images set size = 10 + length(id) + ascii(id)")
        await older.connection.execute(self.STEP)
        before = await older.connection.fetchval("select 'images_once'::regclass::oid")
        await upgrade_schema(older.url, schema=schema)
        assert await older.connection.fetchval("select 'images_once'::regclass::oid") == before

    async def is_valid(self, database: OtherDatabase) -> bool:
        valid = "select indisvalid from pg_index where indexrelid = 'images_once'::regclass"
        return bool(await database.connection.fetchval(valid))
