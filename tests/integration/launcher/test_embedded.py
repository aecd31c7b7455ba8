"""The servers from wheels and the data folder."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import redis

from service.accounts.accounts import create_account, list_accounts, list_keys, revoke_key
from service.launcher import StartError
from service.launcher.embedded import EmbeddedError, data_folder, first_key, instance
from service.launcher.embedded.first_key import FirstKey
from service.launcher.embedded.postgres import Postgres, server_user
from service.launcher.embedded.valkey import Valkey
from tests.support.processes import is_alive
from tests.support.waiting import wait_for

ROOT = Path(__file__).parents[3]
AS_ROOT = os.geteuid() == 0

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


def query(dsn: str, statement: str) -> Any:
    async def ask() -> Any:
        connection = await asyncpg.connect(dsn)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return asyncio.run(ask())


class TestServers:
    def test_data_survives_restart_and_kill(self, server_folder: Path) -> None:
        with (
            Postgres(server_folder / "pg", settings={"io_method": "sync"}) as postgres,
            Valkey(server_folder / "valkey") as valkey,
        ):
            assert query(postgres.dsn, "show fsync") == "on"
            assert query(postgres.dsn, "show synchronous_commit") == "on"
            query(postgres.dsn, "create table kept (n int)")
            query(postgres.dsn, "insert into kept values (1)")
            with redis.Redis.from_url(valkey.url) as client:
                client.set("kept", "1")
                assert client.config_get("appendonly") == {"appendonly": "yes"}
                assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            postgres.stop()
            valkey.stop()
            postgres.start()
            valkey.start()
            for process in (postgres.process, valkey.process):
                assert process is not None
                process.kill()
            postgres.stop()
            valkey.stop()
            postgres.start()
            valkey.start()
            assert query(postgres.dsn, "select n from kept") == 1
            with redis.Redis.from_url(valkey.url) as client:
                assert client.get("kept") == b"1"

    def test_die_with_a_killed_parent(self, server_folder: Path) -> None:
        program = (
            "import sys, time; from pathlib import Path\n"
            "from service.launcher.embedded.postgres import Postgres\n"
            "from service.launcher.embedded.valkey import Valkey\n"
            "server_folder = Path(sys.argv[1])\n"
            "servers = Postgres(server_folder / 'pg', settings={'fsync': 'off'}), Valkey(server_folder / 'valkey')\n"
            "[server.start() for server in servers]\n"
            "print(*(server.process.pid for server in servers), flush=True); time.sleep(60)\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", program, str(server_folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as parent:
            assert parent.stdout is not None
            pids = [int(word) for word in parent.stdout.readline().split()]
            assert len(pids) == 2
            assert all(is_alive(pid) for pid in pids)
            parent.kill()
        wait_for(lambda: not any(is_alive(pid) for pid in pids), 5)

    def test_orphaned_server_is_replaced(self, server_folder: Path) -> None:
        """What a hard kill leaves where the kernel sends no death signal."""
        postgres = Postgres(server_folder / "pg", settings={"fsync": "off"})
        user = server_user()
        program = postgres.program()
        left = subprocess.Popen(
            program.argv,
            user=user.uid if user else None,
            group=user.gid if user else None,
            cwd="/",
            stderr=subprocess.DEVNULL,
        )
        try:
            assert program.ready is not None
            ready = program.ready
            wait_for(lambda: ready(left.pid))
            with postgres:
                assert left.wait(5) == 0
                assert query(postgres.dsn, "select 1") == 1
        finally:
            left.kill()

    def test_reused_pid_is_not_a_server(self, server_folder: Path) -> None:
        with Postgres(server_folder / "pg", settings={"fsync": "off"}) as postgres:
            postgres.stop()
            (postgres.cluster / "postmaster.pid").write_text(f"{os.getpid()}\n{postgres.cluster}\n0\n5432\n\n\n0 0\n")
            postgres.start()
            assert query(postgres.dsn, "select 1") == 1

    def test_other_major_version_is_refused(self, server_folder: Path) -> None:
        cluster = server_folder / "pg" / "cluster"
        cluster.mkdir(parents=True)
        (cluster / "PG_VERSION").write_text("17\n")
        with pytest.raises(EmbeddedError, match="was created by PostgreSQL 17, and this Daguerre includes 18"):
            Postgres(server_folder / "pg").start()

    def test_failed_start_shows_its_reason(self, server_folder: Path) -> None:
        with pytest.raises(StartError, match=r"PostgreSQL did not start: .*shared_buffers.*postgres\.log"):
            Postgres(server_folder / "pg", settings={"fsync": "off", "shared_buffers": "nonsense"}).start()


def zero_wal(cluster: Path) -> None:
    for segment in (cluster / "pg_wal").iterdir():
        if segment.is_file():
            segment.write_bytes(bytes(segment.stat().st_size))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "could not read file": lambda cluster: (cluster / "global" / "pg_control").write_bytes(b""),
    "could not find the database system": lambda cluster: (cluster / "global" / "pg_control").unlink(),
    "could not locate a valid checkpoint record": zero_wal,
    "could not access status of transaction": lambda cluster: shutil.rmtree(cluster / "pg_xact"),
}


class TestDamage:
    def test_reason_of_this_start_is_shown(self, server_folder: Path) -> None:
        """And not the one of an earlier start, which stands in the same log."""
        settings = {"fsync": "off", "io_method": "sync"}
        with Postgres(server_folder / "pg", settings=settings):
            pass
        for number, (reason, damage) in enumerate(DAMAGE.items()):
            copy = server_folder / str(number)
            subprocess.run(["cp", "-a", server_folder / "pg", copy], check=True)
            log = copy / "postgres.log"
            log.write_text("2026-11-28 10:00:00.000 UTC [1] FATAL:  an old reason\n")
            damage(copy / "cluster")
            with pytest.raises(StartError, match=f"PostgreSQL did not start: .*{reason}.*{log}"):
                Postgres(copy, settings=settings).start()


class TestFolder:
    def test_is_made_private_and_locked(self, server_folder: Path) -> None:
        with data_folder.claim(server_folder / "a" / "data", server_user()) as claimed:
            assert claimed.path.stat().st_mode & 0o777 == (0o711 if AS_ROOT else 0o700)
            assert claimed.run == claimed.path / "run"
            with pytest.raises(EmbeddedError, match=r"Daguerre is running on .* already"):  # noqa: SIM117
                with data_folder.claim(claimed.path, None):
                    pass

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("file", "is not a folder"),
            ("file/below/it", r"cannot be created: .*/file is not a folder"),
            ("full", r"holds other files \(a, b, c, …\)"),
        ],
    )
    def test_refuses(self, server_folder: Path, name: str, reason: str) -> None:
        (server_folder / "file").touch()
        (server_folder / "full").mkdir()
        for other in "abcd":
            (server_folder / "full" / other).touch()
        with pytest.raises(EmbeddedError, match=reason), data_folder.claim(server_folder / name, server_user()):
            pass

    @pytest.mark.skipif(not AS_ROOT, reason="only root's PostgreSQL runs as another user")
    def test_refuses_folder_closed_to_nobody(self, server_folder: Path) -> None:
        closed = server_folder / "closed"
        closed.mkdir(mode=0o700)
        with pytest.raises(EmbeddedError, match=r"who cannot enter .*/closed \(mode 700\)"):  # noqa: SIM117
            with data_folder.claim(closed / "data", server_user()):
                pass
        assert list(closed.iterdir()) == []
        with data_folder.claim(closed / "data", None):  # with a PostgreSQL elsewhere it will do
            pass
        assert closed.stat().st_mode & 0o777 == 0o700

    def test_refuses_read_only_folder(self, server_folder: Path) -> None:
        (server_folder / "closed").mkdir(mode=0o500)
        closed = [Path("/proc/data")] if AS_ROOT else [server_folder / "closed", server_folder / "closed" / "data"]
        for path in closed:
            with pytest.raises(EmbeddedError, match=r"not writable|may not write|cannot be used: no such file"):  # noqa: SIM117
                with data_folder.claim(path, None):
                    pass

    @pytest.mark.parametrize("name", ["long" * 30, "with space"])
    def test_unusable_socket_path_gets_another_folder(self, server_folder: Path, name: str) -> None:
        with data_folder.claim(server_folder / name, server_user()) as claimed:
            assert re.fullmatch(r"/tmp/daguerre-\d+-[0-9a-f]{12}", str(claimed.run))
            assert claimed.run.stat().st_mode & 0o077 == (0o011 if AS_ROOT else 0)
        assert not claimed.run.exists()
        claimed.run.symlink_to(server_folder)  # as another user might, beforehand
        try:
            with (
                pytest.raises(EmbeddedError, match="is another user's"),
                data_folder.claim(server_folder / name, server_user()),
            ):
                pass
        finally:
            claimed.run.unlink()

    def test_instance_is_found_by_its_lock(self, server_folder: Path) -> None:
        found = instance.Instance(1, "postgresql://x", "unix:///x", "http://127.0.0.1:1", "https://img.example.com")
        assert instance.find(server_folder / "missing") is None
        instance.announce(server_folder, found)
        assert instance.state_file(server_folder).stat().st_mode & 0o777 == 0o600
        assert instance.find(server_folder) is None
        with instance.lock(server_folder):
            assert instance.find(server_folder) == found
            instance.state_file(server_folder).unlink()
            with pytest.raises(EmbeddedError, match="still starting"):
                instance.find(server_folder, wait_s=0)
        assert instance.find(server_folder) is None


class TestFirstKey:
    async def test_is_made_once_and_shown_again(self, database_url: str, connection: Any, tmp_path: Path) -> None:
        first = await first_key.prepare(database_url, tmp_path)
        assert first.key is not None
        assert await first_key.prepare(database_url, tmp_path) == first
        assert (tmp_path / "first-key").stat().st_mode & 0o777 == 0o600
        (listed,) = await list_keys(connection, "default")
        await revoke_key(connection, listed.id)
        assert await first_key.prepare(database_url, tmp_path) == FirstKey(None, is_revoked=True)
        assert len(await list_keys(connection, "default")) == 1

    async def test_crash_around_the_commit_is_repaired(self, database_url: str, tmp_path: Path) -> None:
        (tmp_path / "first-key.new").write_text("x" * 40)  # written, then not committed
        first = await first_key.prepare(database_url, tmp_path)
        assert first.key not in {None, "x" * 40}
        (tmp_path / "first-key").rename(tmp_path / "first-key.new")  # committed, then not renamed
        assert await first_key.prepare(database_url, tmp_path) == first

    async def test_existing_account_is_unchanged(self, database_url: str, tmp_path: Path) -> None:
        assert (await first_key.prepare(database_url, tmp_path)).key
        (tmp_path / "first-key").unlink()
        assert await first_key.prepare(database_url, tmp_path) == FirstKey(None)

    async def test_key_of_other_data_is_not_revoked(self, database_url: str, connection: Any, tmp_path: Path) -> None:
        """As after a backup was restored over the tables of a first start."""
        (tmp_path / "first-key").write_text("x" * 40)
        await create_account(connection, "shop", 1000)
        assert await first_key.prepare(database_url, tmp_path) == FirstKey(None, account="shop")
        assert [account.name for account in await list_accounts(connection)] == ["shop"]

    async def test_no_account_is_made_beside_others(self, database_url: str, connection: Any, tmp_path: Path) -> None:
        """As in a database of compose, or after the first account was deleted."""
        await create_account(connection, "shop", 1000)
        for _ in range(2):
            assert await first_key.prepare(database_url, tmp_path) == FirstKey(None, account="shop")
        assert [account.name for account in await list_accounts(connection)] == ["shop"]
        assert not (tmp_path / "first-key").exists()

    async def test_empty_database_gets_a_new_key(self, database_url: str, tmp_path: Path) -> None:
        (tmp_path / "first-key").write_text("x" * 40)
        first = await first_key.prepare(database_url, tmp_path)
        assert first.key == (tmp_path / "first-key").read_text().strip() != "x" * 40
