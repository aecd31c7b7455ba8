"""`/readyz` names each dependency that would fail an upload, with the reason, also if its server responds."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import asyncpg
import pytest
import redis as sync_redis
from aiohttp.test_utils import TestClient, TestServer

from service.api.app import create_app
from service.config.settings import Settings
from service.launcher.embedded.postgres import Postgres
from service.launcher.embedded.valkey import Valkey
from service.schema.changes import create_schema
from service.schema.definition import Schema
from tests.conftest import Client, Tenant, empty
from tests.support.disks import fill, mounted, remount
from tests.support.folders import temporary_folder
from tests.support.samples import jpeg
from tests.support.waiting import until

PASSWORD = "opensesame"  # must be in no log and no response
SMALL = {
    "fsync": "off",
    "io_method": "sync",
    "shared_buffers": "16MB",
    "max_wal_size": "32MB",
    "min_wal_size": "32MB",
}


@dataclass(frozen=True)
class Readiness:
    status: int
    checks: dict[str, str]
    reasons: dict[str, str]
    text: str


async def look(api: Client) -> Readiness:
    answer = await api.get("/readyz")
    body = await answer.json()
    return Readiness(answer.status, body["checks"], body.get("reasons", {}), await answer.text())


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Client]:
    async with TestClient(TestServer(create_app(settings))) as client:
        yield client


async def find_reason(settings: Settings, name: str) -> str:
    """The reason of an API that starts with these settings."""
    async with serving(settings) as api:
        readiness = await look(api)
    assert readiness.status == 503
    assert readiness.checks[name] == "unavailable"
    assert PASSWORD not in readiness.text
    return readiness.reasons[name]


async def wait_reason(api: Client, name: str, words: str) -> None:
    async def is_so() -> bool:
        return words in (await look(api)).reasons.get(name, "")

    await until(is_so)


async def wait_ok(api: Client, name: str) -> None:
    async def is_so() -> bool:
        return (await look(api)).checks[name] == "ok"

    await until(is_so)


@pytest.mark.usefixtures("worker")
async def test_an_api_that_works_is_ready(api: Client) -> None:
    await wait_ok(api, "worker")
    readiness = await look(api)
    assert readiness.status == 200
    assert readiness.reasons == {}


async def test_a_missing_worker_is_named(api: Client) -> None:
    assert "no worker" in (await look(api)).reasons["worker"]


# Redis


@pytest.fixture
def valkey(own_valkey: Valkey) -> Iterator[sync_redis.Redis]:
    empty(own_valkey)
    with sync_redis.Redis.from_url(own_valkey.url) as client:
        yield client
        client.config_set("maxmemory", 0)
        client.config_set("save", "")
        client.config_set("maxclients", 10_000)
        client.replicaof("NO", "ONE")
        for user in set(client.acl_users()) - {"default"}:
            client.acl_deluser(user)


def set_user(valkey: sync_redis.Redis, name: str, *rules: str) -> None:
    valkey.execute_command("ACL", "SETUSER", name, *rules)  # type: ignore[no-untyped-call]


@pytest.fixture
def at_valkey(settings: Settings, own_valkey: Valkey) -> Callable[[str], Settings]:
    """Settings with this user and database number."""

    def use(user: str = "", database: int = 0) -> Settings:
        url = f"unix://{user}{own_valkey.socket_path}?db={database}"
        return settings.model_copy(update={"redis_url": url})

    return use


async def test_a_full_redis_is_named(valkey: sync_redis.Redis, at_valkey: Callable[..., Settings]) -> None:
    async with serving(at_valkey()) as api:
        assert (await look(api)).checks["queue"] == "ok"
        valkey.config_set("maxmemory", 1)
        await wait_reason(api, "queue", "memory is full")
        valkey.config_set("maxmemory", 0)
        await wait_ok(api, "queue")


async def test_redis_that_cannot_save_is_named(
    valkey: sync_redis.Redis, at_valkey: Callable[..., Settings], own_valkey: Valkey
) -> None:
    blocking = own_valkey.folder / "dump.rdb"
    blocking.mkdir()  # the file would be renamed to this
    valkey.config_set("save", "3600 1")
    try:
        valkey.bgsave()
        await until(lambda: cast("dict[str, Any]", valkey.info())["rdb_last_bgsave_status"] == "err")
        assert "cannot save" in await find_reason(at_valkey(), "queue")
    finally:
        blocking.rmdir()


async def test_a_replica_of_redis_is_named(valkey: sync_redis.Redis, at_valkey: Callable[..., Settings]) -> None:
    valkey.replicaof("127.0.0.1", 1)
    assert "replica" in await find_reason(at_valkey(), "queue")


async def test_a_wrong_redis_password_is_named(valkey: sync_redis.Redis, at_valkey: Callable[..., Settings]) -> None:
    assert "password is wrong" in await find_reason(at_valkey(f"someone:{PASSWORD}@"), "queue")


async def test_a_missing_redis_password_is_named(valkey: sync_redis.Redis, at_valkey: Callable[..., Settings]) -> None:
    set_user(valkey, "default", "resetpass", f">{PASSWORD}")
    try:
        assert "missing" in await find_reason(at_valkey(), "queue")
    finally:
        set_user(valkey, "default", "nopass")


@pytest.mark.parametrize(
    "rights",
    [
        ["~*", "&*", "+@read", "+@connection", "+@pubsub", "+@scripting", "+time"],
        ["~other:*", "&*", "+@all"],
        ["~*", "&*", "+@all", "-@scripting"],
        ["~*", "resetchannels", "+@all"],
    ],
    ids=["no-writes", "other-keys", "no-scripts", "no-channels"],
)
async def test_missing_redis_rights_are_named(
    valkey: sync_redis.Redis, at_valkey: Callable[..., Settings], rights: list[str]
) -> None:
    set_user(valkey, "limited", "on", f">{PASSWORD}", *rights)
    assert "ACL" in await find_reason(at_valkey(f"limited:{PASSWORD}@"), "queue")


async def test_a_redis_number_out_of_range_is_named(
    valkey: sync_redis.Redis, at_valkey: Callable[..., Settings]
) -> None:
    assert "no database of that number" in await find_reason(at_valkey(database=99), "queue")


@pytest.mark.settings(redis_url="redis://127.0.0.1:1/0")
async def test_a_closed_redis_port_is_named(settings: Settings) -> None:
    assert "nothing listens" in await find_reason(settings, "queue")


@pytest.mark.settings(redis_url="redis://no-such-host.invalid/0")
async def test_an_unknown_redis_host_is_named(settings: Settings) -> None:
    reason = await find_reason(settings, "queue")
    assert "unknown" in reason
    assert "no-such-host" not in reason


# PostgreSQL


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[Postgres]:
    with temporary_folder() as folder, Postgres(folder / "pg", settings=SMALL) as server:
        yield server


@pytest.fixture
async def admin(own_postgres: Postgres) -> AsyncIterator[Any]:
    await create_schema(own_postgres.dsn)
    connection = await asyncpg.connect(own_postgres.dsn)
    yield connection
    await connection.close()


@pytest.fixture
def at_postgres(settings: Settings, own_postgres: Postgres) -> Callable[..., Settings]:
    """Settings for a database of `own_postgres`. The storage has a folder, so that a start needs no database."""
    (settings.storage_folder / "incoming").mkdir(exist_ok=True)

    def use(user: str = "daguerre", database: str = "daguerre") -> Settings:
        url = f"postgresql://{user}@/{database}?host={own_postgres.socket_folder}"
        return settings.model_copy(update={"database_url": url})

    return use


@pytest.mark.slow
async def test_a_wrong_database_password_is_named(
    admin: Any, at_postgres: Callable[..., Settings], own_postgres: Postgres
) -> None:
    rules = own_postgres.cluster / "pg_hba.conf"
    before = rules.read_text()
    await admin.execute("create role keeper login password 'right'")
    rules.write_text(f"local all keeper scram-sha-256\n{before}")
    await admin.execute("select pg_reload_conf()")
    try:
        assert "password is wrong" in await find_reason(at_postgres(f"keeper:{PASSWORD}"), "database")
        rules.write_text(f"local all keeper reject\n{before}")
        await admin.execute("select pg_reload_conf()")

        async def is_rejected() -> bool:
            return "does not admit" in await find_reason(at_postgres("keeper:right"), "database")

        await until(is_rejected)
    finally:
        rules.write_text(before)
        await admin.execute("select pg_reload_conf()")
        await admin.execute("drop role keeper")


@pytest.mark.slow
async def test_an_unknown_database_is_named(admin: Any, at_postgres: Callable[..., Settings]) -> None:
    assert "no database of that name" in await find_reason(at_postgres(database="nothing"), "database")


@pytest.mark.settings(database_url="postgresql://127.0.0.1:1/daguerre")
async def test_a_closed_database_port_is_named(settings: Settings, storage_folder: Path) -> None:
    (storage_folder / "incoming").mkdir(exist_ok=True)
    assert "nothing listens" in await find_reason(settings, "database")


@pytest.mark.slow
async def test_a_database_that_hangs_is_named_alone(settings: Settings, storage_folder: Path) -> None:
    """The storage waits for its id, which the database has."""
    (storage_folder / "incoming").mkdir(exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://127.0.0.1:{silent.getsockname()[1]}/daguerre"
        async with serving(settings.model_copy(update={"database_url": url})) as api:
            readiness = await look(api)
    assert "in time" in readiness.reasons["database"]
    assert readiness.checks["storage"] == "ok"


async def test_a_database_without_tables_is_named(
    admin: Any, at_postgres: Callable[..., Settings], storage_folder: Path
) -> None:
    (storage_folder / "incoming").mkdir(exist_ok=True)
    await admin.execute("create database bare")
    try:
        async with serving(at_postgres(database="bare")) as api:
            assert "daguerre schema" in (await look(api)).reasons["database"]
            refused = await api.get("/v1/account", headers={"X-Api-Key": "x" * 40})
            assert (await refused.json())["error"]["code"] == "database-unavailable"
            await create_schema(at_postgres(database="bare").database_url)
            await wait_ok(api, "database")
    finally:
        await admin.execute("drop database bare with (force)")


@pytest.mark.parametrize(("version", "words"), [(1, "daguerre schema upgrade"), (1000, "newer Daguerre")])
async def test_tables_of_another_version_are_named(
    admin: Any, at_postgres: Callable[..., Settings], version: int, words: str
) -> None:
    await admin.execute("update applied_schema set version = $1", version)
    try:
        assert words in await find_reason(at_postgres(), "database")
    finally:
        await admin.execute("update applied_schema set version = $1", Schema.load().version)


async def test_an_upgrade_beside_a_process_keeps_it(admin: Any, at_postgres: Callable[..., Settings]) -> None:
    async with serving(at_postgres()) as api:
        await admin.execute("update applied_schema set version = 1000")
        try:
            assert (await look(api)).checks["database"] == "ok"
        finally:
            await admin.execute("update applied_schema set version = $1", Schema.load().version)


async def test_a_read_only_database_is_named(admin: Any, at_postgres: Callable[..., Settings]) -> None:
    await admin.execute("alter database daguerre set default_transaction_read_only = on")
    try:
        assert "read-only" in await find_reason(at_postgres(), "database")
    finally:
        await admin.execute("set default_transaction_read_only = off")
        await admin.execute("alter database daguerre reset default_transaction_read_only")


@pytest.mark.slow
async def test_a_hot_standby_is_named(settings: Settings) -> None:
    with temporary_folder() as folder:
        server = Postgres(folder / "pg", settings=SMALL)
        with server:
            await create_schema(server.dsn)
        (server.cluster / "standby.signal").touch()
        with server:
            changed = settings.model_copy(update={"database_url": server.dsn})
            assert "standby" in await find_reason(changed, "database")


async def test_a_database_without_connections_is_named(admin: Any, at_postgres: Callable[..., Settings]) -> None:
    await admin.execute("create role late login connection limit 0")
    try:
        assert "no connection left" in await find_reason(at_postgres("late"), "database")
    finally:
        await admin.execute("drop role late")


async def test_missing_database_rights_are_named(admin: Any, at_postgres: Callable[..., Settings]) -> None:
    await admin.execute("create role reader login; grant select on all tables in schema public to reader")
    try:
        assert "may not write" in await find_reason(at_postgres("reader"), "database")
    finally:
        await admin.execute("drop owned by reader; drop role reader")


@pytest.mark.slow
async def test_a_full_database_disk_is_named(settings: Settings) -> None:
    with (
        temporary_folder() as folder,
        mounted(folder / "pg", "160m"),
        Postgres(folder / "pg", settings=SMALL) as server,
    ):
        await create_schema(server.dsn)
        async with serving(settings.model_copy(update={"database_url": server.dsn})) as api:
            assert (await look(api)).checks["database"] == "ok"
            filling = fill(folder / "pg")
            await wait_reason(api, "database", "disk is full")
            filling.unlink()
            await wait_ok(api, "database")


# The storage


async def test_a_full_storage_is_named(settings: Settings, tmp_path: Path, tenant: Tenant) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "8m"):
        async with serving(settings.model_copy(update={"storage": disk})) as api:
            filling = fill(disk)
            await wait_reason(api, "storage", "disk is full")
            headers = {**tenant.headers, "Content-Type": "image/jpeg"}
            assert (await api.post("/v1/images", data=jpeg(), headers=headers)).status == 503
            filling.unlink()
            await wait_ok(api, "storage")


async def test_a_storage_without_inodes_is_named(settings: Settings, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "8m,nr_inodes=300"):
        async with serving(settings.model_copy(update={"storage": disk})) as api:
            for number in range(300):
                try:
                    (disk / str(number)).touch()
                except OSError:
                    break
            await wait_reason(api, "storage", "no inode")


@pytest.mark.slow
async def test_a_read_only_storage_is_named(settings: Settings, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "8m"):
        async with serving(settings.model_copy(update={"storage": disk})) as api:
            remount(disk, "ro")
            await wait_reason(api, "storage", "read-only")
            remount(disk, "rw")
            await wait_ok(api, "storage")


@pytest.mark.slow
async def test_a_missing_storage_is_named(settings: Settings, tmp_path: Path) -> None:
    storage, elsewhere = tmp_path / "storage", tmp_path / "elsewhere"
    async with serving(settings.model_copy(update={"storage": storage})) as api:
        storage.rename(elsewhere)
        await wait_reason(api, "storage", "not mounted")
        storage.touch()
        await wait_reason(api, "storage", "in place of a folder")
        storage.unlink()
        elsewhere.rename(storage)
        await wait_ok(api, "storage")
