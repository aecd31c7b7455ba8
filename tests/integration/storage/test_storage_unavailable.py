"""While the disk of a storage is not mounted, or another disk is mounted there, no file counts as missing."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from service.api.resources import open_resources as open_api
from service.config.settings import Settings, SettingsError
from service.ids import ImageId
from service.queue import jobs
from service.renditions.queries import NewRendition, insert_renditions
from service.storage.interface import RenditionKey, StorageUnavailable
from service.storage.local.disk import ID_FILE
from service.storage.local.originals import LocalOriginals
from service.storage.local.renditions import LocalRenditions
from tests.conftest import Client, RunBurst, Tenant, resources_of
from tests.support.disks import UNMOUNTED_STATES, on_disk, unmounted
from tests.support.samples import insert_image, jpeg, stored_files
from tests.support.verify import verify
from worker.cron.sweep import sweep
from worker.resources import open_resources

IMAGE = {"Content-Type": "image/jpeg"}
ways = pytest.mark.parametrize("instead", UNMOUNTED_STATES)


@pytest.fixture
async def image_id(api: Client, tenant: Tenant, connection: Any) -> ImageId:
    """An image that is ready."""
    image_id, data = ImageId("AAAAAAA"), jpeg()
    await insert_image(connection, tenant, image_id, size=len(data))
    on_disk(resources_of(api).storage).path(image_id).write_bytes(data)
    return image_id


async def run_sweep(settings: Settings, connection: Any) -> None:
    await connection.execute("update removals set removed_at = now() - interval '1 hour'")
    redis = jobs.open_redis(settings.redis_url)
    async with open_resources(settings, redis) as resources:
        await sweep({"resources": resources})
    await redis.aclose(close_connection_pool=True)


async def code(answer: Any) -> tuple[int, str]:
    return answer.status, (await answer.json())["error"]["code"]


@pytest.mark.slow
@ways
async def test_delete_takes_effect_when_storage_returns(
    api: Client, image_id: ImageId, settings: Settings, tenant: Tenant, connection: Any, instead: str
) -> None:
    with unmounted(settings.storage_folder, instead):
        assert (await api.delete(f"/v1/images/{image_id}", headers=tenant.headers)).status == 200
        await run_sweep(settings, connection)
        assert await connection.fetchval("select array_agg(image_id) from removals") == [image_id]
    assert len(stored_files(settings)) == 1
    await run_sweep(settings, connection)
    assert stored_files(settings) == []
    assert await connection.fetchval("select count(*) from removals") == 0


@pytest.mark.parametrize("missing", ["incoming", "shard"])
async def test_delete_waits_for_a_missing_folder(
    api: Client, image_id: ImageId, settings: Settings, tenant: Tenant, connection: Any, missing: str
) -> None:
    storage = LocalOriginals(settings.storage_folder)
    folder = storage.incoming_path(image_id).parent if missing == "incoming" else storage.path(image_id).parent
    hidden = folder.rename(settings.storage_folder / "hidden")
    assert (await api.delete(f"/v1/images/{image_id}", headers=tenant.headers)).status == 200
    assert await connection.fetchval("select count(*) from removals") == 1
    hidden.rename(folder)
    await run_sweep(settings, connection)
    assert stored_files(settings) == []
    assert await connection.fetchval("select count(*) from removals") == 0


async def test_missing_folder_holds_up_no_other_delete(
    api: Client, settings: Settings, tenant: Tenant, connection: Any
) -> None:
    storage = LocalOriginals(settings.storage_folder)
    image_ids = [ImageId("AAAAAAA"), ImageId("BBBBBBB")]
    for image_id in image_ids:
        await insert_image(connection, tenant, image_id)
        storage.path(image_id).write_bytes(b"x")
    hidden = storage.path(image_ids[0]).parent.rename(settings.storage_folder / "hidden")
    assert (await api.delete(f"/v1/images/{','.join(image_ids)}", headers=tenant.headers)).status == 200
    assert await connection.fetchval("select array_agg(image_id) from removals") == ["AAAAAAA"]
    hidden.rename(storage.path(image_ids[0]).parent)


@pytest.mark.parametrize("instead", ["nothing", "other disk"])
async def test_delete_waits_for_the_renditions_disk(
    api: Client, image_id: ImageId, settings: Settings, tenant: Tenant, connection: Any, instead: str
) -> None:
    folder, key = settings.renditions_folder, RenditionKey(image_id, "0" * 32)
    await resources_of(api).delivery.files.write(key, b"x")
    await insert_renditions(resources_of(api).database, [NewRendition(key, None, 4096)])
    disk = folder.rename(folder.with_name("disk"))
    if instead == "other disk":
        folder.mkdir()
        renditions = resources_of(api).delivery.files
        assert isinstance(renditions, LocalRenditions)
        renditions.device = -1  # only root could mount another one
    assert (await api.delete(f"/v1/images/{image_id}", headers=tenant.headers)).status == 200
    assert stored_files(settings) == []
    assert await connection.fetchval("select array_agg(image_id) from removals") == [image_id]
    if instead == "other disk":
        folder.rmdir()
    disk.rename(folder)
    await run_sweep(settings, connection)
    assert [path for path in folder.rglob("*") if path.is_file()] == []
    assert await connection.fetchval("select count(*) from removals") == 0


async def test_emptied_renditions_hold_up_no_delete(
    api: Client, image_id: ImageId, settings: Settings, tenant: Tenant, connection: Any
) -> None:
    for path in settings.renditions_folder.iterdir():
        path.rmdir()
    assert (await api.delete(f"/v1/images/{image_id}", headers=tenant.headers)).status == 200
    assert await connection.fetchval("select count(*) from removals") == 0


@pytest.mark.parametrize(("instead", "size"), [*((way, 5_000) for way in UNMOUNTED_STATES), ("folders", 600_000)])
async def test_upload_is_refused_while_storage_is_away(
    api: Client, settings: Settings, tenant: Tenant, connection: Any, instead: str, size: int
) -> None:
    storage = on_disk(resources_of(api).storage)
    with unmounted(settings.storage_folder, instead):
        answer = await api.post("/v1/images", data=bytes(size), headers=tenant.headers | IMAGE)
        assert await code(answer) == (503, "storage-unavailable")
        assert stored_files(settings) == []
        with pytest.raises(OSError, match=r"not mounted|No such file"):
            await storage.check()
    assert stored_files(settings) == []
    assert await connection.fetchval("select count(*) from images") == 0
    await storage.check()


@ways
async def test_picture_is_not_lost_while_storage_is_away(
    api: Client, image_id: ImageId, settings: Settings, instead: str
) -> None:
    with unmounted(settings.storage_folder, instead):
        assert await code(await api.get(f"/i/{image_id}")) == (503, "storage-unavailable")
    assert (await api.get(f"/i/{image_id}")).status == 200


@pytest.mark.slow
@pytest.mark.parametrize("instead", ["empty folder", "folders"])
async def test_probe_waits_for_the_storage(
    api: Client, settings: Settings, tenant: Tenant, connection: Any, burst: RunBurst, instead: str, capfd: Any
) -> None:
    await insert_image(connection, tenant, "AAAAAAA", state="pending")
    await connection.execute("update images set created_at = now() - interval '1 day'")
    on_disk(resources_of(api).storage).path(ImageId("AAAAAAA")).write_bytes(jpeg())
    with unmounted(settings.storage_folder, instead):
        await run_sweep(settings, connection)
        finished = asyncio.ensure_future(burst())
        async with asyncio.timeout(10):
            while "probe.deferred" not in capfd.readouterr().out:
                await asyncio.sleep(0.01)
        assert await connection.fetchval("select state from images") == "pending"
    assert (await finished).complete == 1
    assert await connection.fetchval("select state from images") == "ready"


async def test_sweep_leaves_another_storage_alone(api: Client, settings: Settings, connection: Any) -> None:
    with unmounted(settings.storage_folder, "other storage"):
        other = settings.storage_folder / "incoming" / "AAAAAAA"
        other.write_bytes(b"x")
        os.utime(other, (0, 0))
        await run_sweep(settings, connection)
        assert other.exists()


@ways
@pytest.mark.usefixtures("image_id")
async def test_verify_refuses_a_storage_that_is_away(settings: Settings, instead: str) -> None:
    with unmounted(settings.storage_folder, instead), pytest.raises(SettingsError, match="cannot be used"):
        await verify(settings, repair=True, drop_missing=True)


async def test_file_is_not_missing_while_storage_is_away(settings: Settings, api: Client) -> None:
    storage = on_disk(resources_of(api).storage)
    await storage.require_available()
    with unmounted(settings.storage_folder, "folders"), pytest.raises(StorageUnavailable):
        storage.open_file(ImageId("AAAAAAA"))
    with pytest.raises(FileNotFoundError):
        storage.open_file(ImageId("AAAAAAA"))


@ways
async def test_start_beside_another_storage_is_refused(
    api: Client, image_id: ImageId, settings: Settings, tenant: Tenant, instead: str
) -> None:
    known = (settings.storage_folder / ID_FILE).read_text().strip()
    # What is deleted needs the storage no less.
    assert (await api.get(f"/i/{image_id}")).status == 200
    with unmounted(settings.storage_folder, instead):
        assert (await api.delete(f"/v1/images/{image_id}", headers=tenant.headers)).status == 200
        before = list_names(settings.storage_folder)
        with pytest.raises(SettingsError, match=f"echo {known} >{settings.storage_folder}/{ID_FILE}"):
            await start(settings)
        assert list_names(settings.storage_folder) == before
        if instead == "folders":
            (settings.storage_folder / ID_FILE).write_text(known)
            await start(settings)


def list_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


async def start(settings: Settings) -> None:
    async with open_api(settings):
        pass


async def test_storage_without_images_may_be_replaced(settings: Settings, connection: Any) -> None:
    await start(settings)
    first = await connection.fetchval("select id from storage")
    (settings.storage_folder / ID_FILE).unlink()
    await start(settings)
    second = await connection.fetchval("select id from storage")
    assert second not in {None, first}
    assert (settings.storage_folder / ID_FILE).read_text() == f"{second}\n"


async def test_id_is_recorded_after_the_tables_exist(api: Client, settings: Settings, connection: Any) -> None:
    """`daguerre schema` may run after the start of an API process; several begin to note the id at once."""
    storages = [on_disk(resources_of(api).storage)]
    await connection.execute("delete from storage")
    (settings.storage_folder / ID_FILE).unlink()
    await connection.execute("alter table storage rename to others")
    async with open_api(settings) as second:
        storages.append(on_disk(second.storage))
        for storage in storages:
            storage.root.recorded_id.value = None
            await storage.check()
        assert not (settings.storage_folder / ID_FILE).exists()
        await connection.execute("alter table others rename to storage")
        await asyncio.gather(*(storage.check() for storage in storages * 3))
    recorded = await connection.fetchval("select id from storage")
    assert recorded == (settings.storage_folder / ID_FILE).read_text().strip()
    assert {storage.root.recorded_id.value for storage in storages} == {recorded}


async def test_id_of_a_wrong_folder_is_not_recorded(
    api: Client, image_id: ImageId, settings: Settings, connection: Any
) -> None:
    """Of a database that is upgraded while its disk is not mounted."""
    storage = on_disk(resources_of(api).storage)
    await connection.execute("delete from storage")
    (settings.storage_folder / ID_FILE).unlink()
    storage.root.recorded_id.value = None
    with unmounted(settings.storage_folder, "folders"):
        with pytest.raises(StorageUnavailable, match="none of the files"):
            await storage.check()
        with pytest.raises(SettingsError, match="none of the files of this database's images is there"):
            await start(settings)
        assert not (settings.storage_folder / ID_FILE).exists()
    assert await connection.fetchval("select count(*) from storage") == 0
    await storage.check()
    assert await connection.fetchval("select count(*) from storage") == 1


async def test_processes_that_start_together_agree(settings: Settings, connection: Any) -> None:
    await asyncio.gather(*(start(settings) for _ in range(4)))
    assert (
        await connection.fetchval("select id from storage") == (settings.storage_folder / ID_FILE).read_text().strip()
    )
    assert not [path for path in settings.storage_folder.iterdir() if path.name.startswith(".")]


@pytest.mark.settings(wait_s=0)
async def test_restored_storage_is_used_without_a_restart(
    api: Client, settings: Settings, tenant: Tenant, connection: Any
) -> None:
    """As a backup has them: the database and the files with another id."""
    resources = resources_of(api)
    await resources.storage.check()
    await connection.execute("update storage set id = 'restored'")
    (settings.storage_folder / ID_FILE).write_text("restored\n")
    answer = await api.post("/v1/images", data=jpeg(), headers=tenant.headers | IMAGE)
    assert answer.status == 202
