"""`daguerre backup`, `restore` and `psql`: everything is restored, and nothing else is changed."""

from __future__ import annotations

import itertools
import json
import os
import re
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from service.backups import BackupError, programs
from service.backups.backup import make_backup
from service.backups.restore import restore_backup
from service.config.settings import Settings
from service.ids import ImageId
from service.launcher.embedded import EmbeddedError, data_folder
from service.launcher.embedded.postgres import server_user
from service.schema.changes import create_schema
from service.schema.definition import Schema
from service.storage.interface import StorageUnavailable
from service.storage.local.disk import ID_FILE
from service.storage.local.originals import LocalOriginals
from tests.conftest import Client, Servers, Tenant
from tests.support.api import upload_image
from tests.support.commands import daguerre, daguerre_process
from tests.support.disks import UNMOUNTED_STATES, unmounted
from tests.support.samples import jpeg, stored_files
from tests.support.up import up

pytestmark = pytest.mark.slow

_numbers = itertools.count()


@pytest.fixture
async def new_settings(servers: Servers, settings: Settings, tmp_path: Path) -> AsyncIterator[Settings]:
    """Another database and another storage, with nothing in them."""
    name = f"restored_{next(_numbers)}"
    connection = await asyncpg.connect(servers.postgres.dsn)
    await connection.execute(f"create database {name}")
    data = tmp_path / "restored"
    data.mkdir()
    changes = {"data": data, "storage": data / "storage", "database_url": servers.postgres.dsn_of(name)}
    yield settings.model_copy(update=changes)
    await connection.execute(f"drop database {name} with (force)")
    await connection.close()


async def back_up(settings: Settings, target: Path, write: Callable[[str], None] = lambda _: None) -> int:
    return await make_backup(settings, target, first_key=settings.data / "first-key", write=write)


async def restore(settings: Settings, source: Path) -> tuple[bool, list[str]]:
    lines: list[str] = []
    return await restore_backup(settings, source, write=lines.append), lines


@pytest.mark.usefixtures("worker")
async def test_backup_is_restored_completely(
    api: Client, tenant: Tenant, settings: Settings, new_settings: Settings, tmp_path: Path
) -> None:
    image_ids = [await upload_image(api, tenant, jpeg(width, 48)) for width in (64, 65, 66)]
    (settings.data / "first-key").write_text(f"{tenant.key}\n")
    await back_up(settings, tmp_path / "backup")
    assert (tmp_path / "backup").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "backup" / "first-key").stat().st_mode & 0o777 == 0o600
    is_well, lines = await restore(new_settings, tmp_path / "backup")
    assert is_well, lines
    assert lines[-1].endswith(": no problems.")
    old, new = LocalOriginals(settings.storage_folder), LocalOriginals(new_settings.storage_folder)
    for image_id in map(ImageId, image_ids):
        assert new.path(image_id).read_bytes() == old.path(image_id).read_bytes()
    assert (new_settings.data / "first-key").read_text().strip() == tenant.key
    assert [((new_settings.storage_folder / ID_FILE).read_text().strip(),)] == await fetch(
        new_settings, "select id from storage"
    )
    rows = "select id, tags, sha256, state from images order by id"
    assert await fetch(new_settings, rows) == await fetch(settings, rows)


@pytest.mark.usefixtures("worker")
async def test_backup_of_an_older_version_is_upgraded(
    api: Client, tenant: Tenant, settings: Settings, new_settings: Settings, connection: Any, tmp_path: Path
) -> None:
    """Also over the empty tables of this version."""
    await upload_image(api, tenant, jpeg(64, 48))
    await connection.execute("drop table unfinished_uploads; update applied_schema set version = 3")
    await back_up(settings, tmp_path / "backup")
    await create_schema(new_settings.database_url)
    is_well, lines = await restore(new_settings, tmp_path / "backup")
    assert is_well, lines
    versions = "select array_agg(version order by version) from applied_schema"
    assert await fetch(new_settings, versions) == [(list(range(3, Schema.load().version + 1)),)]
    assert await fetch(new_settings, "select count(*) from unfinished_uploads") == [(0,)]


async def fetch(settings: Settings, statement: str) -> list[Any]:
    connection = await asyncpg.connect(settings.database_url)
    try:
        return [tuple(row) for row in await connection.fetch(statement)]
    finally:
        await connection.close()


@pytest.mark.usefixtures("worker")
async def test_changes_during_a_backup_are_no_fault(
    api: Client, tenant: Tenant, settings: Settings, new_settings: Settings, tmp_path: Path
) -> None:
    """Between the dump and the files: an upload, a delete, and a file that is still on its way to its place."""
    kept, deleted, late = [await upload_image(api, tenant, jpeg(width, 48)) for width in (64, 65, 66)]
    storage = LocalOriginals(settings.storage_folder)
    storage.path(late).rename(storage.incoming_path(late))
    stranger = storage.incoming_path(ImageId("AAAAAAA"))  # an upload that has no row yet
    stranger.write_bytes(b"half of it")

    def meanwhile(line: str) -> None:
        if line.startswith("Database:"):
            storage.path(deleted).unlink()
            (storage.path(kept).parent / "BBBBBBB").write_bytes(jpeg())

    await back_up(settings, tmp_path / "backup", meanwhile)
    is_well, lines = await restore(new_settings, tmp_path / "backup")
    assert is_well, lines
    assert f"image {deleted}: its file is missing; deleted" in lines
    assert {path.name for path in stored_files(new_settings)} == {kept, late}


@pytest.mark.usefixtures("worker")
async def test_later_backup_copies_new_files_only(
    api: Client, tenant: Tenant, settings: Settings, tmp_path: Path
) -> None:
    lines: list[str] = []
    await upload_image(api, tenant, jpeg(64, 48))
    await back_up(settings, tmp_path / "backup")
    await upload_image(api, tenant, jpeg(65, 48))
    await back_up(settings, tmp_path / "backup", lines.append)
    assert "Images: 1 files copied (" in lines[-1]
    assert "), 1 already there" in lines[-1]


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("instead", UNMOUNTED_STATES)
async def test_wrong_storage_is_not_backed_up(
    api: Client, tenant: Tenant, settings: Settings, new_settings: Settings, tmp_path: Path, instead: str
) -> None:
    """A disk that is not mounted, or the wrong one; what was backed up before stays."""
    await upload_image(api, tenant, jpeg(64, 48))
    with unmounted(settings.storage_folder, instead), pytest.raises(StorageUnavailable):
        await back_up(settings, tmp_path / "backup")
    with pytest.raises(BackupError, match="holds no finished backup"):
        await restore(new_settings, tmp_path / "backup")
    await back_up(settings, tmp_path / "backup")
    before = (tmp_path / "backup" / "database.dump").read_bytes()
    with unmounted(settings.storage_folder, instead), pytest.raises(StorageUnavailable):
        await back_up(settings, tmp_path / "backup")
    assert (tmp_path / "backup" / "database.dump").read_bytes() == before


@pytest.mark.usefixtures("worker")
async def test_unmount_during_a_backup_is_noticed(
    api: Client, tenant: Tenant, settings: Settings, new_settings: Settings, tmp_path: Path
) -> None:
    """A disk that is unmounted while it is copied, and whose mount point has Daguerre's folders."""
    await upload_image(api, tenant, jpeg(64, 48))
    with ExitStack() as stack:

        def meanwhile(line: str) -> None:
            if line.startswith("Database:"):
                stack.enter_context(unmounted(settings.storage_folder, "folders"))

        with pytest.raises(StorageUnavailable):
            await back_up(settings, tmp_path / "backup", meanwhile)
    with pytest.raises(BackupError, match="holds no finished backup"):
        await restore(new_settings, tmp_path / "backup")


@pytest.mark.usefixtures("worker")
async def test_damage_spoils_no_earlier_copy(api: Client, tenant: Tenant, settings: Settings, tmp_path: Path) -> None:
    """The copy in the backup may be the only good one."""
    cut, emptied, lost, whole = [
        ImageId(await upload_image(api, tenant, jpeg(width, 48))) for width in (64, 65, 66, 67)
    ]
    storage, copies = LocalOriginals(settings.storage_folder), LocalOriginals(tmp_path / "backup" / "storage")
    await back_up(settings, tmp_path / "backup")
    before = {image_id: copies.path(image_id).read_bytes() for image_id in (cut, emptied, lost, whole)}
    os.truncate(storage.path(cut), 100)
    os.truncate(storage.path(emptied), 0)
    storage.path(lost).unlink()
    assert await back_up(settings, tmp_path / "backup") == 0
    os.truncate(copies.path(whole), 100)  # a copy whose end a power cut took
    assert await back_up(settings, tmp_path / "backup") == 0
    assert {image_id: copies.path(image_id).read_bytes() for image_id in before} == before


@pytest.mark.usefixtures("worker")
async def test_bad_files_stop_no_backup(
    api: Client, tenant: Tenant, settings: Settings, new_settings: Settings, tmp_path: Path
) -> None:
    """The other images are in the backup, and the command names the missing ones."""
    directory, pipe, cut, lost, whole = [
        ImageId(await upload_image(api, tenant, jpeg(width, 48))) for width in range(64, 69)
    ]
    storage = LocalOriginals(settings.storage_folder)
    for image_id in (directory, pipe, lost):
        storage.path(image_id).unlink()
    storage.path(directory).mkdir()
    os.mkfifo(storage.path(pipe))
    size = storage.path(cut).stat().st_size
    os.truncate(storage.path(cut), 100)
    lines: list[str] = []
    assert await back_up(settings, tmp_path / "backup", lines.append) == 4
    assert set(lines[2:]) == {
        f"image {directory}: its file cannot be read: it is a folder",
        f"image {pipe}: its file cannot be read: it is not a regular file",
        f"image {cut}: its file has 100 bytes instead of {size}",
        f"image {lost}: its file is missing",
    }
    assert not (await restore(new_settings, tmp_path / "backup"))[0]
    assert {path.name for path in stored_files(new_settings)} == {cut, whole}


def test_missing_storage_is_named(database_url: str, tmp_path: Path) -> None:
    """The error is not about the database, which can be used."""
    done = daguerre_process("backup", str(tmp_path / "copy"), database_url=database_url, DAGUERRE_DATA=str(tmp_path))
    assert (done.returncode, done.stderr) == (
        1,
        "Error: Not finished: [Errno 19] the storage is not mounted: its folder is missing\n",
    )


@pytest.mark.usefixtures("storage")
async def test_incomplete_backup_ends_with_1(
    connection: Any, tenant: Tenant, settings: Settings, tmp_path: Path
) -> None:
    await connection.execute(
        """
        insert into images (id, account_id, size, sha256, state)
        select lpad(n::text, 7, '0'), $1, 9, '', 'ready' from generate_series(1, 30) as n
        """,
        tenant.id,
    )
    environment = {"DAGUERRE_STORAGE": str(settings.storage_folder), "DAGUERRE_DATA": str(settings.data)}
    words = ("backup", str(tmp_path / "backup"))
    done = daguerre_process(*words, database_url=settings.database_url, **environment)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert (lines[2], lines[21]) == ("image 0000001: its file is missing", "image 0000020: its file is missing")
    assert lines[22:] == [
        "… and 10 more images",
        f"Error: The backup in {tmp_path / 'backup'} is complete except for the files of 30 images; see `verify`.",
    ]


async def test_backup_refuses_other_folders(settings: Settings, storage: LocalOriginals, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(BackupError, match=r"holds other files \(a.jpg\)"):
        await back_up(settings, tmp_path / "photos")
    with pytest.raises(BackupError, match="inside the folder of the images"):
        await back_up(settings, settings.storage_folder / "backup")
    (tmp_path / "link").symlink_to(settings.storage_folder)
    with pytest.raises(BackupError, match="inside the folder of the images"):
        await back_up(settings, tmp_path / "link" / "backup")


async def test_restore_overwrites_nothing(
    tenant: Tenant, settings: Settings, new_settings: Settings, storage: LocalOriginals, tmp_path: Path
) -> None:
    await back_up(settings, tmp_path / "backup")
    with pytest.raises(BackupError, match="The database already holds accounts"):
        await restore(settings, tmp_path / "backup")
    LocalOriginals(new_settings.storage_folder).prepare()
    file = LocalOriginals(new_settings.storage_folder).path(ImageId("AAAAAAA"))
    file.write_bytes(b"a picture")
    with pytest.raises(BackupError, match="already holds images"):
        await restore(new_settings, tmp_path / "backup")
    assert file.read_bytes() == b"a picture"
    file.unlink()
    assert (await restore(new_settings, tmp_path / "backup"))[0]


@pytest.fixture
def storage(settings: Settings) -> LocalOriginals:
    storage = LocalOriginals(settings.storage_folder)
    storage.prepare()
    return storage


@pytest.mark.parametrize(
    ("url", "variables"),
    [
        ("postgresql://u:p%40ss@db:6432/images", "PGHOST=db PGPORT=6432 PGUSER=u PGPASSWORD=p@ss PGDATABASE=images"),
        ("postgresql://daguerre@/x?host=/run/postgres", "PGHOST=/run/postgres PGUSER=daguerre PGDATABASE=x"),
        ("postgresql://[::1]:5433/x", "PGHOST=::1 PGPORT=5433 PGDATABASE=x"),
        ("postgres://a:1,b/x?sslmode=require", "PGHOST=a,b PGPORT=1,5432 PGDATABASE=x PGSSLMODE=require"),
        ("postgresql:///x?search_path=a%20b", r"PGDATABASE=x PGOPTIONS=-c\0search_path=a\\0b"),
        ("postgresql://%2Frun%2Fpg/x?host=other", "PGHOST=/run/pg PGPORT=5432 PGDATABASE=x"),
    ],
)
def test_url_becomes_environment_variables(monkeypatch: pytest.MonkeyPatch, url: str, variables: str) -> None:
    for name in ("PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE", "PGOPTIONS", "PGSSLMODE"):
        monkeypatch.delenv(name, raising=False)
    found = {name: value for name, value in programs.environment(url).items() if name.startswith("PG")}
    assert found == {
        name: value.replace(r"\0", " ") for name, _, value in (word.partition("=") for word in variables.split())
    }


def test_psql_reaches_the_database(database_url: str) -> None:
    done = daguerre_process("psql", "-Atc", "select 6 * 7, current_database()", database_url=database_url)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("42|")
    limited = f"{database_url}&statement_timeout=1234"
    assert daguerre_process("psql", "-Atc", "show statement_timeout", database_url=limited).stdout == "1234ms\n"
    assert daguerre_process("psql", "-c", "nonsense", database_url=database_url).returncode == 1


def test_older_program_is_refused() -> None:
    with pytest.raises(BackupError, match=r"pg_dump of PostgreSQL 99 or newer is needed .* postgresql-client-99"):
        programs.find_program("pg_dump", "postgresql:///x", 99)
    assert programs.find_program("pg_dump", "postgresql:///x", 18).exists()


@pytest.mark.parametrize("words", [("backup", "{}"), ("restore", "{}"), ("psql",)])
def test_missing_database_is_explained(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = daguerre(*(word.format(tmp_path / "backup") for word in words), "--data", str(tmp_path / "none"))
    assert done.returncode == 1
    assert re.match(r"Error: (No Daguerre is running on|.* holds no finished backup)", done.stderr)
    assert not (tmp_path / "none").exists()


def test_a_failed_restore_leaves_an_empty_folder(server_folder: Path) -> None:
    def fill(data: Path) -> None:
        with data_folder.claim_new(data, server_user()) as claimed:
            claimed.postgres.mkdir()
            raise KeyError

    with pytest.raises(KeyError):
        fill(server_folder / "data")
    assert [path.name for path in (server_folder / "data").iterdir()] == ["lock"]
    with data_folder.claim_new(server_folder / "data", server_user()):
        pass
    with pytest.raises(EmbeddedError, match="is not empty"):
        fill(server_folder / "data")
    (server_folder / "data" / data_folder.RESTORING).touch()  # of one that was killed
    for claim in (data_folder.claim, data_folder.claim_new):
        with (
            pytest.raises(EmbeddedError, match=r"restore of a backup in .* was interrupted"),
            claim(server_folder / "data", server_user()),
        ):
            pass


@pytest.mark.timeout(180)
def test_a_running_daguerre_is_backed_up(server_folder: Path) -> None:
    """End to end, while uploads and deletes run: a new `up` on what was restored has every image of the dump."""
    data, copy, target = server_folder / "data", server_folder / "backup", server_folder / "new"
    with up(data) as first:
        sample, stop = first.sample.read_bytes(), threading.Event()
        path = f"/v1/images?key={first.key}&tags="
        before = [json.loads(first.get(f"{path}{n}", sample)[1])["response"]["id"] for n in range(5)]

        def send() -> None:
            while not stop.is_set():
                status, answer = first.get(f"{path}more", sample)
                assert status == 200
                if (image_id := json.loads(answer)["response"]["id"])[-1] < "a":
                    first.get(f"/v1/images/{image_id}/delete?key={first.key}")

        sending = [threading.Thread(target=send) for _ in range(3)]
        for thread in sending:
            thread.start()
        try:
            done = daguerre_process("backup", str(copy), "--data", str(data))
        finally:
            stop.set()
            for thread in sending:
                thread.join()
        assert done.returncode == 0, done.stderr
        counted = daguerre_process("psql", "--data", str(data), "-Atc", "select count(*) from images")
        assert int(counted.stdout) >= 5
        refused = daguerre_process("restore", str(copy), "--data", str(data))
        assert "is not empty" in refused.stderr
    done = daguerre_process("restore", str(copy), "--data", str(target))
    assert done.returncode == 0, done.stderr
    with up(target) as second:
        assert second.key == first.key
        assert "to see it: cat" in second.text
        verified = daguerre_process("verify", "--data", str(target))
        assert verified.returncode == 0
        assert verified.stdout.splitlines()[-1].endswith(": no problems.")
        for image_id in before:
            assert second.get(f"/v1/images/{image_id}?key={second.key}")[0] == 200
    offline = daguerre_process("backup", str(server_folder / "offline"), "--data", str(target))
    assert offline.returncode == 0, offline.stderr
