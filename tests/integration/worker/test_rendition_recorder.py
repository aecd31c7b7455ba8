"""The rows of renditions, which are written in the background."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from service.config.settings import Settings
from service.database import Database
from service.errors import ServiceError
from service.ids import ImageId
from service.renditions.queries import NewRendition, insert_renditions
from service.storage.interface import RenditionKey
from service.storage.local.renditions import LocalRenditions
from tests.conftest import Tenant
from tests.support.waiting import until
from worker import rendition_recorder
from worker.rendition_recorder import RenditionRecorder

IMAGE, DELETED = ImageId("AAAAAAA"), ImageId("BBBBBBB")


@pytest.fixture(autouse=True)
async def image(connection: Any, tenant: Tenant) -> None:
    await connection.execute(
        "insert into images (id, account_id, size, sha256, state) values ($1, $2, 1, '', 'ready')", IMAGE, tenant.id
    )


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    async with Database.open(settings.database_url, connections=2) as database:
        yield database


@pytest.fixture
def files(settings: Settings) -> LocalRenditions:
    files = LocalRenditions(settings.renditions_folder)
    files.prepare()
    return files


@pytest.fixture
def count_rows(connection: Any) -> Callable[[], Any]:
    return lambda: connection.fetchval("select count(*) from renditions")


async def write(files: LocalRenditions, digit: str, image_id: ImageId = IMAGE) -> NewRendition:
    key = RenditionKey(image_id, digit * 32)
    return NewRendition(key, None, (await files.write(key, b"x")).size)


def block(path: Path) -> None:
    """Makes a folder, which cannot be unlinked as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir()


async def test_row_is_written_when_database_is_back(
    database: Database, files: LocalRenditions, count_rows: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = 3

    async def fail(database: Database, batch: Sequence[NewRendition]) -> list[bool]:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise ServiceError("database-unavailable")
        return await insert_renditions(database, batch)

    monkeypatch.setattr(rendition_recorder, "insert_renditions", fail)
    async with RenditionRecorder.open(database, files, gather_s=0.01, retry_s=0.01) as recorder:
        recorder.record(await write(files, "1"))
        await until(count_rows)
        assert failures < 0
        await until(lambda: not recorder.backlog)


async def test_file_of_a_deleted_image_is_removed(
    database: Database, files: LocalRenditions, count_rows: Callable[[], Any]
) -> None:
    async with RenditionRecorder.open(database, files, gather_s=0.01) as recorder:
        orphan = await write(files, "1", DELETED)
        recorder.record(orphan)
        recorder.record(await write(files, "2"))
        await until(count_rows)
        await until(lambda: not files.path(orphan.key).exists())


async def test_backlog_is_written_at_shutdown(
    database: Database, files: LocalRenditions, count_rows: Callable[[], Any]
) -> None:
    async with RenditionRecorder.open(database, files, gather_s=60) as recorder:
        recorder.record(await write(files, "1"))
        recorder.record(await write(files, "2"))
        assert await count_rows() == 0
    assert await count_rows() == 2


async def test_shutdown_waits_for_no_database(
    database: Database, files: LocalRenditions, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    async def fail(database: Database, batch: Sequence[NewRendition]) -> list[bool]:
        nonlocal calls
        calls += 1
        raise ServiceError("database-unavailable")

    monkeypatch.setattr(rendition_recorder, "insert_renditions", fail)
    async with RenditionRecorder.open(database, files) as recorder:
        recorder.record(await write(files, "1"))
        await until(lambda: calls)
    assert calls > 1  # once more at the end, and no longer


async def test_stuck_file_stops_no_other_row(
    database: Database, files: LocalRenditions, count_rows: Callable[[], Any]
) -> None:
    async with RenditionRecorder.open(database, files, gather_s=0.01) as recorder:
        stuck = RenditionKey(DELETED, "1" * 32)
        block(files.path(stuck))
        recorder.record(NewRendition(stuck, None, 1))
        for digit in "123":
            recorder.record(await write(files, digit))
        await until(lambda: not recorder.backlog)
        assert await count_rows() == 3
        recorder.record(await write(files, "4"))
        await until(lambda: not recorder.backlog)
        assert await count_rows() == 4


async def test_folder_that_is_away_stops_no_row(
    database: Database, files: LocalRenditions, count_rows: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(self: LocalRenditions, keys: Any) -> set[RenditionKey]:
        raise OSError("the folder is away")

    monkeypatch.setattr(LocalRenditions, "remove", fail)
    async with RenditionRecorder.open(database, files, gather_s=0.01) as recorder:
        recorder.record(NewRendition(RenditionKey(DELETED, "1" * 32), None, 1))
        for digit in "12":
            recorder.record(await write(files, digit))
            await until(lambda: not recorder.backlog)
        assert await count_rows() == 2


async def test_row_that_is_refused_stops_no_other(
    database: Database, files: LocalRenditions, count_rows: Callable[[], Any]
) -> None:
    """Rows are written one by one if PostgreSQL refuses the batch, e.g. because of a size beyond its type."""
    async with RenditionRecorder.open(database, files, gather_s=0.01) as recorder:
        recorder.record(NewRendition(RenditionKey(IMAGE, "9" * 32), None, 1 << 70))
        recorder.record(await write(files, "1"))
        recorder.record(await write(files, "2"))
        await until(lambda: not recorder.backlog)
        assert await count_rows() == 2
