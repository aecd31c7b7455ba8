"""`daguerre storage copy`: to a store and back, interrupted and repeated, and which targets are refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from service.config.settings import Settings, SettingsError
from service.config.values import StoreUrl, parse_storage
from service.ids import ImageId
from service.launcher.embedded.object_store import BUCKET, ObjectStoreServer
from service.storage.interface import StorageUnavailable
from service.storage.object_store.client import ObjectStore
from service.storage.object_store.originals import object_name
from service.transfers import storage_copy
from service.transfers.storage_copy import copy_storage
from tests.conftest import Client, Tenant, run_worker
from tests.support.samples import jpeg
from tests.support.verify import verify


class TestTargets:
    @pytest.mark.parametrize(
        ("source", "target"),
        [
            ("s3://bucket/a", "s3://bucket/a/"),
            ("s3://bucket", "s3://bucket/ab"),
            ("s3://bucket/a/b", "s3://bucket/a"),
            ("{0}/a", "{0}/b/../a"),
            ("{0}/a", "{0}/link"),
            ("{0}/a", "{0}/link/b"),
            ("{0}/a/b", "{0}/a"),
        ],
    )
    async def test_target_inside_the_other_is_refused(
        self, settings: Settings, tmp_path: Path, source: str, target: str
    ) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "a")
        changed = settings.model_copy(update={"storage": parse_storage(source.format(tmp_path))})
        with pytest.raises(SettingsError, match="is the storage that is in use"):
            await copy_storage(changed, parse_storage(target.format(tmp_path)), write=print)
        assert not (tmp_path / "a").exists()

    @pytest.mark.usefixtures("worker")
    async def test_storage_of_another_database_is_refused(
        self, api: Client, tenant: Tenant, settings: Settings, tmp_path: Path
    ) -> None:
        await upload(api, tenant)
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "storage-id").write_text("another\n")
        with pytest.raises(SettingsError, match="is the storage of another database"):
            await copy_storage(settings, tmp_path / "other", write=print)

    async def test_unreadable_source_is_refused(
        self, api: Client, tenant: Tenant, settings: Settings, tmp_path: Path
    ) -> None:
        async with run_worker(settings):
            await upload(api, tenant)
        changed = settings.model_copy(update={"storage": tmp_path / "none"})
        with pytest.raises(StorageUnavailable):
            await copy_storage(changed, tmp_path / "other", write=print)
        assert not (tmp_path / "other").exists()


async def upload(api: Client, tenant: Tenant, width: int = 64) -> ImageId:
    headers = {"Content-Type": "image/jpeg", **tenant.headers}
    answer = await api.post("/v1/images", data=io.BytesIO(jpeg(width)), headers=headers)
    assert answer.status == 200, await answer.text()
    return ImageId((await answer.json())["response"]["id"])


@pytest.fixture
def url(object_store_server: ObjectStoreServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StoreUrl:
    for name, value in object_store_server.environment().items():
        monkeypatch.setenv(name, value)
    return StoreUrl("s3", BUCKET, f"copy-{tmp_path.name}".lower())


def on(settings: Settings, storage: Path | StoreUrl) -> Settings:
    changes: dict[str, Any] = {"storage": storage}
    if isinstance(storage, StoreUrl):
        changes["renditions_dir"] = None
    return settings.model_copy(update=changes)


async def test_images_move_to_a_store_and_back(
    api: Client, tenant: Tenant, settings: Settings, url: StoreUrl, tmp_path: Path
) -> None:
    async with run_worker(settings):
        image_ids = [await upload(api, tenant, width) for width in range(40, 60)]
        lines: list[str] = []
        assert await copy_storage(settings, url, write=lines.append)
        assert lines[-1].startswith("20 files copied")
        later = await upload(api, tenant)
        assert await copy_storage(settings, url, write=lines.append)
        assert lines[-1].startswith("1 files copied")
        assert lines[-1].endswith("20 already there")
    assert (await verify(on(settings, url))).problems == []
    assert await copy_storage(on(settings, url), tmp_path / "back", write=lines.append)
    assert (await verify(on(settings, tmp_path / "back"))).problems == []
    store = ObjectStore(url)
    for image_id in (*image_ids, later):
        assert await store.find(object_name(image_id)) is not None


async def test_progress_is_shown(
    api: Client, tenant: Tenant, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_copy, "_PROGRESS_INTERVAL_S", 0)
    async with run_worker(settings):
        await upload(api, tenant)
    lines: list[str] = []
    assert await copy_storage(settings, tmp_path / "other", write=lines.append)
    assert lines[0].startswith("1 of 1 images: 1 files copied")


async def test_copies_of_deleted_images_are_quarantined(
    api: Client, tenant: Tenant, settings: Settings, url: StoreUrl
) -> None:
    lines: list[str] = []
    async with run_worker(settings):
        deleted, kept = [await upload(api, tenant, width) for width in (40, 41)]
        assert await copy_storage(settings, url, write=lines.append)
        assert (await api.delete(f"/v1/images/{deleted}", headers=tenant.headers)).status == 200
        assert await copy_storage(settings, url, write=lines.append)
    assert lines[-1] == "copies of deleted images, moved to `unclaimed`: 1"
    store = ObjectStore(url)
    assert await store.find(object_name(deleted)) is None
    assert await store.find(object_name(kept)) is not None
    assert (await verify(on(settings, url))).problems == []


async def test_damaged_and_lost_files_are_named(
    api: Client, tenant: Tenant, settings: Settings, url: StoreUrl, connection: Any
) -> None:
    async with run_worker(settings):
        lost, damaged, cut = [await upload(api, tenant, width) for width in (40, 41, 42)]
    assert settings.storage_folder.exists()
    paths = {path.name: path for path in settings.storage_folder.glob("??/*")}
    paths[lost].unlink()
    paths[damaged].write_bytes(bytes(paths[damaged].stat().st_size))
    paths[cut].write_bytes(b"x")
    lines: list[str] = []
    assert not await copy_storage(settings, url, write=lines.append)
    assert {line.split(":")[0].removeprefix("image ") for line in lines[:-1]} == {lost, damaged, cut}
    with pytest.raises(FileNotFoundError):
        await ObjectStore(url).read("storage-id")
