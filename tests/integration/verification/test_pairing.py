"""`serve` and `up` refuse to begin a new database beside a storage of images, and a new storage beside their rows."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from service.config.settings import Settings, SettingsError
from service.database import Database
from service.ids import ImageId
from service.storage.identity import load_id
from service.storage.local.originals import LocalOriginals
from service.verification.pairing import prepare_storage, require_pair
from tests.conftest import Servers, Tenant
from tests.support.commands import daguerre_process
from tests.support.samples import insert_image
from tests.support.up import up
from tests.support.verify import ID, insert, put
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow


@pytest.fixture
def storage(settings: Settings) -> LocalOriginals:
    """With a file that is an image's."""
    storage = LocalOriginals(settings.storage_folder)
    storage.prepare()
    put(storage.path(ID))
    return storage


def environment(settings: Settings) -> dict[str, str]:
    return {
        "DAGUERRE_STORAGE": str(settings.storage_folder),
        "DAGUERRE_DATABASE_URL": settings.database_url,
        "DAGUERRE_REDIS_URL": settings.redis_url,
    }


class TestPair:
    @pytest.mark.usefixtures("tenant")  # an account is no image
    async def test_empty_database_is_refused(self, settings: Settings, storage: LocalOriginals) -> None:
        with pytest.raises(SettingsError, match=f"{storage.path(ID)}, and the database has no image.*--new-database"):
            await require_pair(settings.database_url, storage)
        await require_pair(settings.database_url, storage, is_new_database=True)

    async def test_database_without_tables_is_refused(
        self, storage: LocalOriginals, connection: Any, servers: Servers
    ) -> None:
        await connection.execute("create database without_tables")
        with pytest.raises(SettingsError, match="the database has no image"):
            await require_pair(servers.postgres.dsn_of("without_tables"), storage)
        await connection.execute("drop database without_tables")

    @pytest.mark.parametrize("state", ["ready", "pending", "failed"])
    async def test_one_row_is_enough(
        self, settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant, state: str
    ) -> None:
        await insert_image(connection, tenant, "IMAGE01", state=state)
        await require_pair(settings.database_url, storage)

    async def test_one_removal_is_enough(self, settings: Settings, storage: LocalOriginals, connection: Any) -> None:
        """The last image was deleted, and its file is not."""
        await connection.execute("insert into removals (image_id) values ($1)", ID)
        await require_pair(settings.database_url, storage)

    async def test_first_start_is_accepted(self, settings: Settings, storage: LocalOriginals) -> None:
        storage.path(ID).unlink()
        await require_pair(settings.database_url, storage)
        put(storage.incoming_path(ID))
        put(storage.shard_folder(1) / "lost+found")
        storage.shard_folder(2).rmdir()
        await require_pair(settings.database_url, storage)
        storage.shard_folder(2).mkdir()
        await require_pair(settings.database_url, LocalOriginals(settings.storage_folder / "none"))

    async def test_database_outage_is_ignored(self, storage: LocalOriginals) -> None:
        await require_pair("postgresql://127.0.0.1:1/x", storage)

    async def test_broken_shard_hides_no_files(self, settings: Settings, storage: LocalOriginals) -> None:
        other = next(path for path in map(storage.shard_folder, range(2)) if path != storage.path(ID).parent)
        other.rmdir()
        put(other)
        with pytest.raises(SettingsError, match="the database has no image"):
            await require_pair(settings.database_url, storage)
        other.unlink()
        other.mkdir()


class TestHint:
    """What a refused start advises is complete: the shell runs it, and the next start succeeds."""

    async def start(self, settings: Settings) -> str | None:
        """Returns why it is refused, or None."""
        async with Database.open(settings.database_url, connections=1) as database:
            storage = LocalOriginals(settings.storage_folder, partial(load_id, database))
            try:
                await require_pair(settings.database_url, storage)
                await prepare_storage(storage, database)
                await storage.check()
            except SettingsError as error:
                return str(error)
        return None

    async def follow(self, settings: Settings, refusal: str | None) -> None:
        assert refusal is not None
        advice = refusal[refusal.index("run: ") + len("run: ") : -1]
        words = advice.replace("daguerre ", f"{sys.executable} -m service.cli ")
        variables = {"PATH": os.environ["PATH"], **environment(settings)}
        process = await asyncio.create_subprocess_shell(words, env=variables)
        assert await process.wait() == 0, words

    @pytest.mark.parametrize("has_id", [True, False])
    async def test_images_can_be_given_up(
        self, settings: Settings, connection: Any, tenant: Tenant, tmp_path: Path, has_id: bool
    ) -> None:
        if has_id:
            await connection.execute("insert into storage (id) values ('of-the-lost-disk')")
        await insert(connection, tenant)
        settings = settings.model_copy(update={"storage": tmp_path / "a mount"})
        await self.follow(settings, await self.start(settings))
        assert await connection.fetchval("select count(*) from images") == 0
        assert await self.start(settings) is None

    async def test_copied_images_can_be_adopted(
        self, settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
    ) -> None:
        await insert(connection, tenant)
        await connection.execute("insert into storage (id) values ('of-the-first-disk')")
        await self.follow(settings, await self.start(settings))
        assert await self.start(settings) is None
        assert storage.read_own_id() == "of-the-first-disk"


@pytest.mark.parametrize("processes", ["1", "2"])
class TestServe:
    def serve(self, settings: Settings, processes: str) -> subprocess.CompletedProcess[str]:
        return daguerre_process("serve", "--port", "0", "--processes", processes, **environment(settings))

    @pytest.mark.usefixtures("storage")
    async def test_empty_database_is_refused(self, settings: Settings, processes: str) -> None:
        done = await asyncio.to_thread(self.serve, settings, processes)
        assert done.returncode == 1
        assert done.stderr.startswith("Error: DAGUERRE_STORAGE (or DAGUERRE_DATA): ")
        assert "correct DAGUERRE_DATABASE_URL" in done.stderr
        assert done.stderr.count("\n") == 1

    async def test_no_storage_is_made_beside_rows(
        self, settings: Settings, connection: Any, tenant: Tenant, processes: str, tmp_path: Path
    ) -> None:
        mount = tmp_path / "mount"
        mount.mkdir()
        await insert_image(connection, tenant, "IMAGE01")
        done = await asyncio.to_thread(self.serve, settings.model_copy(update={"storage": mount}), processes)
        assert (done.returncode, list(mount.iterdir())) == (1, [])
        assert "mount that disk" in done.stderr

    @pytest.mark.usefixtures("storage")
    def test_flag_allows_a_new_database(self, settings: Settings, processes: str, tmp_path: Path) -> None:
        log = tmp_path / "log"
        words = [
            sys.executable,
            "-m",
            "service.cli",
            "serve",
            "--port",
            "0",
            "--processes",
            processes,
            "--new-database",
        ]
        with log.open("w") as output:
            process = subprocess.Popen(words, env={"PATH": os.environ["PATH"], **environment(settings)}, stderr=output)
        wait_for(lambda: "api.listening" in log.read_text() or process.poll() is not None)
        process.terminate()
        assert process.wait(20) == 0, log.read_text()


class TestUp:
    @pytest.mark.usefixtures("storage")
    async def test_refused_start_changes_nothing(
        self, server_folder: Path, settings: Settings, connection: Any
    ) -> None:
        done = await asyncio.to_thread(
            daguerre_process, "up", "--port", "0", "--data", str(server_folder / "data"), **environment(settings)
        )
        assert done.returncode == 1
        assert "the database has no image" in done.stderr
        assert "Traceback" not in done.stderr
        assert await connection.fetchval("select count(*) from accounts") == 0

    def test_starts_with_the_flag(self, server_folder: Path, settings: Settings, storage: LocalOriginals) -> None:
        with up(server_folder / "data", "--new-database", env=environment(settings)) as started:
            assert started.get("/readyz")[0] == 200
        assert storage.path(ImageId(ID)).exists()
