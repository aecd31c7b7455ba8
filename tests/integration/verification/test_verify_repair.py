"""`daguerre verify --repair` does no harm: to a storage beside the wrong database, to the quarantine, to folders that
cannot be used and to files that Daguerre did not write.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from service.config.settings import Settings
from service.ids import ImageId
from service.storage.local.disk import ID_FILE
from service.storage.local.originals import LocalOriginals
from tests.conftest import Tenant
from tests.support.commands import daguerre
from tests.support.disks import prepare_identified
from tests.support.verify import ID, PICTURE, insert, put, verify

pytestmark = pytest.mark.slow

IDS = [ImageId(f"Image{number:02}") for number in range(30)]


@pytest.fixture
async def storage(settings: Settings, connection: Any) -> LocalOriginals:
    return await prepare_identified(settings, connection)


def aside(settings: Settings, name: str) -> Path:
    return settings.storage_folder / "unclaimed" / name


def files_below(settings: Settings) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in settings.storage_folder.rglob("*") if path.is_file()}


async def test_files_of_an_unknown_storage_stay(
    settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
) -> None:
    """Fewer than the bound, beside a database that does not know the storage."""
    await insert(connection, tenant)
    put(storage.path(ID))
    put(storage.path(IDS[0]))
    put(storage.incoming_path(IDS[1]), age_s=5000)
    before = files_below(settings)
    await connection.execute("delete from storage")
    result = await verify(settings, repair=True)
    assert any("1 of 2 files belong to no image, so none was moved" in line for line in result.problems)
    assert any("1 unfinished uploads belong to no image, so none was removed" in line for line in result.problems)
    assert files_below(settings) == before
    assert (await verify(settings, repair=True, force=True)).is_well


async def test_uploads_outlive_an_empty_database(settings: Settings, storage: LocalOriginals) -> None:
    """It is new, and knows the storage; the rows may be restored from a dump."""
    received = put(storage.incoming_path(IDS[1]), age_s=5000)
    assert not (await verify(settings, repair=True)).is_well
    assert received.exists()
    assert (await verify(settings, repair=True, force=True)).is_well
    assert not received.exists()


async def test_storage_without_id_drops_no_image(
    settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
) -> None:
    """The folders were made in a mount point, before the storage ever got an id."""
    await insert(connection, tenant)
    await connection.execute("delete from storage")
    (storage.root.path / ID_FILE).unlink()
    result = await verify(settings, repair=True, drop_missing=True)
    assert any("1 of 1 files are missing, so no image was deleted" in line for line in result.problems)
    assert await connection.fetchval("select count(*) from images") == 1
    assert (await verify(settings, drop_missing=True, force=True)).is_well


class TestOtherDatabase:
    """Every file of a full storage belongs to no image."""

    @pytest.fixture(autouse=True)
    def full_storage(self, settings: Settings, storage: LocalOriginals) -> dict[str, bytes]:
        for image_id in IDS:
            put(storage.path(image_id))
        for number in range(15):
            put(storage.incoming_path(ImageId(f"Coming{number:02}")), age_s=5000)
        return files_below(settings)

    async def test_no_file_is_moved_or_removed(self, settings: Settings, full_storage: dict[str, bytes]) -> None:
        result = await verify(settings, repair=True, drop_missing=True)
        assert not result.is_well
        assert any("30 of 30 files belong to no image, so none was moved" in line for line in result.problems)
        assert any("15 unfinished uploads belong to no image, so none was removed" in line for line in result.problems)
        assert files_below(settings) == full_storage

    async def test_no_file_is_moved_beside_other_images(
        self, settings: Settings, full_storage: dict[str, bytes], connection: Any, tenant: Tenant
    ) -> None:
        for number in range(12):
            await insert(connection, tenant, image_id=f"Other{number:02}")
        result = await verify(settings, repair=True, drop_missing=True)
        assert any("12 of 12 files are missing, so no image was deleted" in line for line in result.problems)
        assert files_below(settings) == full_storage
        assert await connection.fetchval("select count(*) from images") == 12

    async def test_force_lifts_the_bound(self, settings: Settings, connection: Any, tenant: Tenant) -> None:
        for number in range(12):
            await insert(connection, tenant, image_id=f"Other{number:02}")
        result = await verify(settings, repair=True, drop_missing=True, force=True)
        assert result.is_well, result.problems
        assert sorted(path.name for path in aside(settings, "").iterdir()) == IDS
        assert await connection.fetchval("select count(*) from images") == 0

    async def test_command_has_the_force_flag(self, settings: Settings, full_storage: dict[str, bytes]) -> None:
        given = {"DAGUERRE_STORAGE": str(settings.storage_folder), "DAGUERRE_REDIS_URL": settings.redis_url}
        done = daguerre("verify", "--repair", database_url=settings.database_url, **given)
        assert done.returncode == 1
        assert "check that the database is the right one, and restored; --force moves them" in done.stdout
        assert files_below(settings) == full_storage
        done = daguerre("verify", "--repair", "--force", "--read", database_url=settings.database_url, **given)
        assert done.returncode == 0

    async def test_files_are_restored_with_their_rows(
        self, settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
    ) -> None:
        await verify(settings, repair=True, force=True)
        for image_id in IDS:
            await insert(connection, tenant, image_id=image_id)
        result = await verify(settings, drop_missing=True)
        assert result.problems[0] == (
            f"image {IDS[0]}: its file is missing, and {aside(settings, IDS[0])} has its content"
        )
        assert await connection.fetchval("select count(*) from images") == len(IDS)  # none is lost, so none was dropped
        result = await verify(settings, repair=True, drop_missing=True)
        assert result.is_well
        assert all(line.endswith("; restored") for line in result.problems)
        assert all(storage.path(image_id).read_bytes() == PICTURE for image_id in IDS)
        assert (await verify(settings)).problems == []


class TestQuarantine:
    async def test_file_of_the_right_content_is_restored(
        self, settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
    ) -> None:
        for content in (b"other", PICTURE[:-1] + b"x", PICTURE):
            storage.unclaimed.add(put(storage.path(ID), content))
        await insert(connection, tenant)
        assert (await verify(settings, repair=True)).is_well
        assert storage.path(ID).read_bytes() == PICTURE
        assert {path.name for path in aside(settings, "").iterdir()} == {ID, f"{ID}.1"}

    async def test_damaged_file_is_replaced(
        self, settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
    ) -> None:
        storage.unclaimed.add(put(storage.path(ID)))
        put(storage.path(ID), b"damaged")
        await insert(connection, tenant)
        result = await verify(settings, repair=True)
        [line] = result.problems
        assert line.startswith(f"image {ID}: its file has 7 bytes instead of {len(PICTURE)}, and ")
        assert line.endswith(f"{aside(settings, ID)} has its content; restored")
        assert storage.path(ID).read_bytes() == PICTURE
        assert aside(settings, f"{ID}.1").read_bytes() == b"damaged"

    async def test_other_content_is_never_restored(
        self, settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
    ) -> None:
        storage.unclaimed.add(put(storage.path(ID), b"of an image that had the id before"))
        aside(settings, f"{ID}.7").symlink_to("/etc/passwd")
        aside(settings, f"{ID}.8").mkdir()
        os.mkfifo(aside(settings, f"{ID}.9"))
        await insert(connection, tenant)
        assert (await verify(settings, repair=True)).problems == [f"image {ID}: its file is missing"]

    async def test_file_in_wrong_folder_is_restored(
        self, settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
    ) -> None:
        await insert(connection, tenant)
        wrong = next(folder for folder in map(storage.shard_folder, range(2)) if folder != storage.path(ID).parent)
        put(wrong / ID)
        result = await verify(settings, repair=True)
        assert f"file {wrong / ID}: it is in the wrong folder; moved to {aside(settings, ID)}" in result.problems
        assert (await verify(settings, repair=True)).is_well
        assert storage.path(ID).read_bytes() == PICTURE


class TestFolders:
    """One broken folder stops no other check. (root lacks no permission, so it is e.g. a link to itself.)"""

    @pytest.fixture(params=["file", "loop", "missing"])
    async def broken(
        self, request: pytest.FixtureRequest, storage: LocalOriginals, connection: Any, tenant: Tenant
    ) -> AsyncIterator[Path]:
        """The folder of ID; beside it another image is whole, one file is an orphan and the counters are wrong."""
        await insert(connection, tenant)
        other = next(image_id for image_id in IDS if storage.path(image_id).parent != storage.path(ID).parent)
        await insert(connection, tenant, image_id=other)
        put(storage.path(other))
        put(storage.path(ImageId("NoImage")))
        await connection.execute("update accounts set num_images = 7")
        folder = storage.path(ID).parent
        folder.rmdir()
        if request.param == "file":
            folder.write_bytes(b"no folder")
        elif request.param == "loop":
            folder.symlink_to(folder.name)
        yield folder
        if request.param != "missing":
            folder.unlink(missing_ok=True)
        folder.mkdir(exist_ok=True)

    async def test_broken_folder_stops_no_other_check(
        self, settings: Settings, storage: LocalOriginals, broken: Path, connection: Any
    ) -> None:
        unclaimed = storage.path(ImageId("NoImage"))
        result = await verify(settings, repair=True, drop_missing=True)
        assert [line for line in result.problems if line.startswith(f"folder {broken}: ")]
        assert [line for line in result.problems if line.startswith(f"image {ID}: its file ")]
        assert f"file {unclaimed}: no image belongs to it; moved to {aside(settings, 'NoImage')}" in result.problems
        assert any("its counters are off" in line for line in result.problems)
        assert "could not be finished" not in str(result.problems)
        assert await connection.fetchval("select count(*) from images") == 2

    async def test_force_needs_one_run(
        self, settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
    ) -> None:
        """A missing folder keeps images from being deleted, unless the operator says that its files are gone."""
        await insert(connection, tenant)
        storage.path(ID).parent.rmdir()
        result = await verify(settings, repair=True, drop_missing=True)
        assert any("a folder was missing or cannot be read, so no image" in line for line in result.problems)
        storage.path(ID).parent.rmdir()
        assert (await verify(settings, repair=True, drop_missing=True, force=True)).is_well
        assert await connection.fetchval("select count(*) from images") == 0

    async def test_incoming_may_be_a_file(self, settings: Settings, storage: LocalOriginals) -> None:
        incoming = storage.incoming
        incoming.rmdir()
        incoming.write_bytes(b"no folder")
        unclaimed = put(storage.path(ID))
        result = await verify(settings)
        incoming.unlink()
        incoming.mkdir()
        assert result.problems == [
            f"folder {incoming}: it cannot be read: not a directory",
            f"file {unclaimed}: no image belongs to it",
            "unfinished uploads: the check could not be finished: not a directory",
        ]

    async def test_missing_incoming_is_created(
        self, settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant
    ) -> None:
        await insert(connection, tenant)
        put(storage.path(ID))
        storage.incoming.rmdir()
        assert f"folder {storage.incoming}: it is missing" in (await verify(settings)).problems
        assert (await verify(settings, repair=True)).problems == [f"folder {storage.incoming}: it is missing; created"]
        assert (await verify(settings)).is_well


class TestNames:
    """Files that Daguerre did not write go into the quarantine, and are printed as text of one line."""

    @pytest.mark.parametrize(
        ("name", "shown"),
        [
            (b"\xff\xfe.jpg", r"\xff\xfe.jpg"),
            (b"two\nlines\x1b[31m", r"two\nlines\x1b[31m"),
            (b"\xe2\x80\xaegpj.exe", r"\u202egpj.exe"),
            (b"x" * 255, "x" * 255),
            (b".nfs000001", ".nfs000001"),
        ],
    )
    async def test_foreign_names_are_quarantined(
        self, settings: Settings, storage: LocalOriginals, name: bytes, shown: str, tenant: Tenant, connection: Any
    ) -> None:
        strange = put(storage.shard_folder(5) / os.fsdecode(name))
        received = put(storage.incoming_path(ImageId(os.fsdecode(name))), b"other", age_s=5000)
        behind = put(storage.incoming_path(ID), age_s=5000)
        await insert(connection, tenant)
        result = await verify(settings, repair=True)
        left = [path.name for path in (strange, received, behind) if path.exists()]
        assert (
            f"file {storage.shard_folder(5)}/{shown}: no image belongs to it; moved to {aside(settings, '')}/{shown}"
            in (result.problems)
        )
        assert f"file incoming/{ID}: it was not moved to its folder; moved" in result.problems
        if len(name) < 255:  # else there is no room for a number behind it
            assert result.is_well
            assert not left
            assert (await verify(settings)).is_well
        for path in (strange, received):
            path.unlink(missing_ok=True)

    async def test_foreign_names_are_printed_escaped(self, settings: Settings, storage: LocalOriginals) -> None:
        put(storage.shard_folder(5) / os.fsdecode(b"\xff"))
        given = {"DAGUERRE_STORAGE": str(settings.storage_folder), "DAGUERRE_REDIS_URL": settings.redis_url}
        done = daguerre("verify", database_url=settings.database_url, **given)
        assert done.stdout.splitlines()[0].endswith(r"\xff: no image belongs to it")

    @pytest.mark.parametrize("kind", ["pipe", "folder"])
    async def test_pipe_or_folder_is_never_read(
        self, settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant, kind: str
    ) -> None:
        """Opening a pipe without a writer would wait for ever."""
        await insert(connection, tenant)
        (os.mkfifo if kind == "pipe" else os.mkdir)(storage.path(ID))
        result = await verify(settings, repair=True, drop_missing=True)
        (os.unlink if kind == "pipe" else os.rmdir)(storage.path(ID))
        what = "it is not a regular file" if kind == "pipe" else "it is a folder"
        assert result.problems == [f"image {ID}: its file cannot be read: {what}"]


async def test_unmounted_storage_drops_no_image(
    settings: Settings, storage: LocalOriginals, connection: Any, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is unmounted after verify began."""
    await insert(connection, tenant)
    monkeypatch.setattr("service.verification.report.check_folders", _take_away)
    result = await verify(settings, repair=True, drop_missing=True)
    (settings.storage_folder.parent / "away").rename(settings.storage_folder)
    assert (
        "images: the check could not be finished: the storage is not mounted: its folder is missing" in result.problems
    )
    assert await connection.fetchval("select count(*) from images") == 1


async def _take_away(context: Any) -> Any:
    folder = context.storage.shard_folder(0).parent
    folder.rename(folder.parent / "away")
    return
    yield
