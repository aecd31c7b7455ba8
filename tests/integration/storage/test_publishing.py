"""On a disk, an upload moves to its final path and overwrites no file."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from service.config.settings import Settings
from service.ids import ImageId
from service.images.pending import new_image_id
from service.storage.local.disk import publish
from service.storage.local.originals import LocalOriginals
from tests.conftest import Client, Tenant
from tests.support.samples import jpeg, stored_files

ID = ImageId("AAAAAAA")


@pytest.fixture
def storage(settings: Settings) -> LocalOriginals:
    storage = LocalOriginals(settings.storage_folder)
    storage.prepare()
    return storage


@pytest.fixture(params=["hard links", "no hard links"])
def links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on ext4, and as on exFAT or SMB."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if request.param == "no hard links":
        monkeypatch.setattr(os, "link", refuse)


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.usefixtures("links")
class TestPublish:
    def test_file_is_moved(self, tmp_path: Path) -> None:
        source, target = put(tmp_path / "source", b"new"), tmp_path / "target"
        publish(source, target)
        assert not source.exists()
        assert target.read_bytes() == b"new"
        assert target.stat().st_nlink == 1

    def test_file_is_never_overwritten(self, tmp_path: Path) -> None:
        source, target = put(tmp_path / "source", b"new"), put(tmp_path / "target", b"old")
        with pytest.raises(FileExistsError):
            publish(source, target)
        assert (source.read_bytes(), target.read_bytes()) == (b"new", b"old")

    def test_missing_file_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            publish(tmp_path / "source", tmp_path / "target")
        assert not (tmp_path / "target").exists()


@pytest.mark.usefixtures("links")
class TestPublishUploads:
    async def test_orphan_is_quarantined(self, storage: LocalOriginals, settings: Settings) -> None:
        """The row was inserted just now, so the file that is there belongs to no image."""
        put(storage.path(ID), b"orphan")
        put(storage.incoming_path(ID), b"image")
        await storage.publish([ID])
        aside = settings.storage_folder / "unclaimed" / ID
        contents = {path: path.read_bytes() for path in stored_files(settings)}
        assert contents == {storage.path(ID): b"image", aside: b"orphan"}

    async def test_failure_stops_no_other_file(self, storage: LocalOriginals) -> None:
        put(storage.incoming_path(ImageId("BBBBBBB")), b"image")
        await storage.publish([ID, ImageId("BBBBBBB")])
        assert storage.path(ImageId("BBBBBBB")).read_bytes() == b"image"

    async def test_file_published_elsewhere_is_kept(
        self, storage: LocalOriginals, capfd: pytest.CaptureFixture[str]
    ) -> None:
        put(storage.path(ID), b"image")
        await storage.publish([ID])
        assert storage.path(ID).read_bytes() == b"image"
        assert "storage.move_failed" not in capfd.readouterr().out


@pytest.mark.parametrize("step", ["publish", "reconcile"])
async def test_crash_between_two_names_is_repaired(storage: LocalOriginals, settings: Settings, step: str) -> None:
    """Of `publish` with hard links: the file has its own path, and is still in `incoming`."""
    put(storage.incoming_path(ID), b"image")
    os.link(storage.incoming_path(ID), storage.path(ID))
    await (storage.publish([ID]) if step == "publish" else storage.reconcile({ID: bytes(32)}))
    assert [(path, path.read_bytes()) for path in stored_files(settings)] == [(storage.path(ID), b"image")]


async def test_sha256_decides_which_file_is_the_image(storage: LocalOriginals, settings: Settings) -> None:
    put(storage.path(ID), b"orphan")
    put(storage.incoming_path(ID), b"image")
    assert await storage.reconcile({ID: hashlib.sha256(b"image").digest()}) == {}
    aside = settings.storage_folder / "unclaimed" / ID
    contents = {path: path.read_bytes() for path in stored_files(settings)}
    assert contents == {storage.path(ID): b"image", aside: b"orphan"}


async def test_deletion_between_two_names_is_complete(storage: LocalOriginals, settings: Settings) -> None:
    put(storage.incoming_path(ID), b"image")
    os.link(storage.incoming_path(ID), storage.path(ID))
    await storage.remove([ID])
    assert stored_files(settings) == []


async def test_quarantine_overwrites_nothing(storage: LocalOriginals, settings: Settings) -> None:
    for content in (b"first", b"second", b"third"):
        storage.unclaimed.add(put(storage.path(ID), content))
    assert {path.read_bytes() for path in stored_files(settings)} == {b"first", b"second", b"third"}


async def test_renamed_upload_overwrites_no_other(storage: LocalOriginals) -> None:
    other = put(storage.incoming_path(ID), b"another upload")
    own = new_image_id()
    async with storage.receive(own) as file:
        await file.finish([b"own"])
        await storage.sync_batch([file])
        assert not await storage.rename_upload(file, ID)
        assert await storage.rename_upload(file, ImageId("BBBBBBB"))
    assert other.read_bytes() == b"another upload"
    assert not storage.incoming_path(own).exists()


@pytest.mark.slow
async def test_upload_gets_a_third_id_if_two_are_taken(
    api: Client, tenant: Tenant, connection: Any, storage: LocalOriginals, monkeypatch: pytest.MonkeyPatch, worker: None
) -> None:
    """The first id has a row, and the second an upload that is still on its way."""
    await connection.execute(
        "insert into images (id, account_id, size, sha256, state) values ('AAAAAAA', $1, 1, '', 'ready')", tenant.id
    )
    other = put(storage.incoming_path(ImageId("BBBBBBB")), b"another upload")
    ids = iter([ImageId("BBBBBBB"), ImageId("CCCCCCC")])
    monkeypatch.setattr("service.uploads.receiving.new_image_id", lambda: ID)
    monkeypatch.setattr("service.uploads.ingest.new_image_id", lambda: next(ids))
    answer = await api.post("/v1/images", data=jpeg(), headers=tenant.headers | {"Content-Type": "image/jpeg"})
    assert (await answer.json())["response"]["id"] == "CCCCCCC"
    assert other.read_bytes() == b"another upload"
    assert storage.path(ImageId("CCCCCCC")).read_bytes() == jpeg()


async def upload(storage: LocalOriginals, content: bytes) -> None:
    async with storage.receive(ID) as file:
        await file.finish([content])
    assert await storage.sync_batch([file]) == [None]


def read(storage: LocalOriginals) -> bytes:
    with storage.open_file(ID) as file:
        return file.read()


async def test_orphan_gives_way(storage: LocalOriginals) -> None:
    """The row was inserted just now, so the file that was there belongs to no image."""
    for content in (b"orphan", b"image"):
        await upload(storage, content)
        assert await storage.publish([ID]) == frozenset()
    assert read(storage) == b"image"


@pytest.mark.parametrize("image", [b"published", b"unpublished"])
async def test_sha256_decides_between_two_files(storage: LocalOriginals, image: bytes) -> None:
    await upload(storage, b"published")
    assert await storage.publish([ID]) == frozenset()
    await upload(storage, b"unpublished")
    assert await storage.reconcile({ID: hashlib.sha256(image).digest()}) == {}
    assert read(storage) == image
    assert await storage.list_stale_uploads(0, 100) == []


def test_prepared_folder_has_no_id_yet(storage: LocalOriginals) -> None:
    assert storage.read_own_id() is None
