"""The sweep finishes what other processes left unfinished, and touches nothing else."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from service.config.settings import Settings
from service.ids import ImageId
from service.queue import jobs
from service.queue.jobs import PROBE_QUEUE
from service.storage.interface import RenditionKey
from service.storage.local.originals import LocalOriginals
from tests.conftest import Client, RunBurst, Tenant
from tests.support.disks import on_disk, prepare_identified, unmounted
from tests.support.samples import jpeg, stored_files
from worker.cron.counters import refresh_accounts
from worker.cron.eviction import evict_renditions
from worker.cron.sweep import sweep
from worker.resources import Resources, open_resources

ID = ImageId("AAAAAAA")


@pytest.fixture
async def resources(settings: Settings, connection: Any) -> AsyncIterator[Resources]:
    await prepare_identified(settings, connection)
    redis = jobs.open_redis(settings.redis_url)
    async with open_resources(settings, redis) as opened:
        yield opened
    await redis.aclose(close_connection_pool=True)


async def insert(connection: Any, tenant: Tenant, state: str, *, age_s: float, image_id: str = ID) -> None:
    await connection.execute(
        "insert into images (id, account_id, size, sha256, state, error, created_at, failed_at)"
        " values ($1, $2, 10, '', $3, 'unsupported-image', now() - $4::float8 * interval '1 s',"
        " now() - $4::float8 * interval '1 s')",
        image_id,
        tenant.id,
        state,
        age_s,
    )


def put(path: Path, *, age_s: float = 0) -> Path:
    path.write_bytes(jpeg())
    os.utime(path, (time.time() - age_s,) * 2)
    return path


async def test_pending_row_is_enqueued_again(resources: Resources, connection: Any, tenant: Tenant) -> None:
    await insert(connection, tenant, "pending", age_s=11)
    await insert(connection, tenant, "pending", age_s=1, image_id="JustNow")
    await sweep({"resources": resources})
    await sweep({"resources": resources})
    assert await resources.redis.zrange(PROBE_QUEUE, 0, -1) == [ID.encode()]


async def test_image_whose_job_was_lost_becomes_ready(
    resources: Resources, connection: Any, tenant: Tenant, burst: RunBurst, api: Client
) -> None:
    await insert(connection, tenant, "pending", age_s=11)
    put(on_disk(resources.storage).path(ID))
    await sweep({"resources": resources})
    assert (await burst()).complete == 1
    shown = await (await api.get(f"/v1/images/{ID}", headers=tenant.headers)).json()
    assert shown["response"]["width"] == 64


async def test_received_file_without_a_row_is_removed(resources: Resources, connection: Any, tenant: Tenant) -> None:
    await insert(connection, tenant, "ready", age_s=10, image_id="CCCCCCC")
    old = put(on_disk(resources.storage).incoming_path(ID), age_s=3601)
    young = put(on_disk(resources.storage).incoming_path(ImageId("BBBBBBB")), age_s=3500)
    await sweep({"resources": resources})
    assert not old.exists()
    assert young.exists()


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["no id", "other id", "no image", "no tables"])
async def test_worker_alone_beside_a_wrong_database_sweeps_nothing(
    resources: Resources, settings: Settings, connection: Any, tenant: Tenant, capfd: Any, wrong: str
) -> None:
    """Even if it replaces the right database while the worker runs."""
    await insert(connection, tenant, "ready", age_s=10, image_id="CCCCCCC")
    rendition = (await resources.renditions.write(RenditionKey(ID, "0" * 32), b"x")).path
    os.utime(rendition, (0, 0))
    await resources.storage.require_available()
    if wrong == "no id":
        await connection.execute("delete from storage")
    elif wrong == "other id":
        await connection.execute("update storage set id = 'other'")
    elif wrong == "no image":
        await connection.execute("delete from images")
    else:
        await connection.execute("alter table storage rename to others")
    received = put(on_disk(resources.storage).incoming_path(ID), age_s=4000)
    redis = jobs.open_redis(settings.redis_url)
    async with open_resources(settings, redis) as started_now:
        for worker in (resources, started_now):
            await sweep({"resources": worker})
        assert received.exists()
        if wrong != "no image":
            for _ in range(256):
                await evict_renditions({"resources": started_now})
            assert rendition.exists()
            noise = [line for line in capfd.readouterr().out.splitlines() if "storage.unavailable" not in line]
            assert noise == []
    await redis.aclose(close_connection_pool=True)
    await connection.execute("alter table if exists others rename to storage")


async def test_removals_wait_while_storage_is_away(
    resources: Resources, settings: Settings, connection: Any, capfd: Any
) -> None:
    await connection.execute(
        "insert into removals select 'Gone' || to_char(n, 'FM0000'), now() - interval '1 hour'"
        " from generate_series(0, 1199) as n"
    )
    with unmounted(settings.storage_folder, "empty folder"):
        for _ in range(3):
            await sweep({"resources": resources})
    lines = [line for line in capfd.readouterr().out.splitlines() if "[warning" in line or '"warning"' in line]
    assert len(lines) <= 1, lines
    assert await connection.fetchval("select count(*) from removals") == 1200
    await sweep({"resources": resources})
    assert await connection.fetchval("select count(*) from removals") == 0


@pytest.mark.parametrize("state", ["pending", "ready"])
async def test_received_file_with_a_row_is_published(
    resources: Resources, connection: Any, tenant: Tenant, state: str
) -> None:
    await insert(connection, tenant, state, age_s=4000)
    put(on_disk(resources.storage).incoming_path(ID), age_s=3601)
    await sweep({"resources": resources})
    assert on_disk(resources.storage).path(ID).exists()
    assert not on_disk(resources.storage).incoming_path(ID).exists()


async def test_received_file_never_replaces_an_original(
    resources: Resources, connection: Any, tenant: Tenant, settings: Settings
) -> None:
    """Its id was in use, and the process died before it chose another one."""
    await insert(connection, tenant, "ready", age_s=4000)
    stored = put(on_disk(resources.storage).path(ID))
    stored.write_bytes(b"the image's own")
    put(on_disk(resources.storage).incoming_path(ID), age_s=3601)
    await sweep({"resources": resources})
    assert [(path, path.read_bytes()) for path in stored_files(settings)] == [(stored, b"the image's own")]


async def test_file_of_a_deleted_row_is_removed(resources: Resources, connection: Any, settings: Settings) -> None:
    put(on_disk(resources.storage).path(ID))
    put(on_disk(resources.storage).incoming_path(ImageId("BBBBBBB")))
    await connection.execute(
        "insert into removals values ('AAAAAAA', now() - interval '31 s'), ('BBBBBBB', now() - interval '31 s'),"
        " ('Missing', now() - interval '31 s')"
    )
    await sweep({"resources": resources})
    assert stored_files(settings) == []
    assert await connection.fetchval("select count(*) from removals") == 0


async def test_file_of_a_reused_id_stays(resources: Resources, connection: Any, tenant: Tenant) -> None:
    await insert(connection, tenant, "ready", age_s=60)
    stored = put(on_disk(resources.storage).path(ID))
    await connection.execute("insert into removals values ('AAAAAAA', now() - interval '31 s')")
    await sweep({"resources": resources})
    assert stored.exists()


async def test_failed_row_is_kept_for_a_day(resources: Resources, connection: Any, tenant: Tenant) -> None:
    await insert(connection, tenant, "failed", age_s=24 * 3600 + 1)
    await insert(connection, tenant, "failed", age_s=24 * 3600 - 60, image_id="Recent1")
    await sweep({"resources": resources})
    assert [row["id"] for row in await connection.fetch("select id from images")] == ["Recent1"]


async def test_ready_images_are_untouched(resources: Resources, connection: Any, tenant: Tenant) -> None:
    await insert(connection, tenant, "ready", age_s=1_000_000)
    file = put(on_disk(resources.storage).path(ID), age_s=1_000_000)
    await sweep({"resources": resources})
    assert file.exists()
    assert await connection.fetchval("select count(*) from images") == 1
    assert await resources.redis.zcard(PROBE_QUEUE) == 0


async def test_folders_exist_from_the_start(settings: Settings) -> None:
    storage = LocalOriginals(settings.storage_folder)
    storage.prepare()
    assert len([path for path in settings.storage_folder.iterdir() if len(path.name) == 2]) == 256
    storage.prepare()


async def test_stuck_file_stops_no_removal(
    resources: Resources, connection: Any, tenant: Tenant, settings: Settings
) -> None:
    await insert(connection, tenant, "ready", age_s=10, image_id="CCCCCCC")
    stuck = on_disk(resources.storage).incoming_path(ImageId("STUCK01"))
    stuck.mkdir()
    os.utime(stuck, (0, 0))
    on_disk(resources.storage).path(ImageId("STUCK02")).mkdir()
    put(on_disk(resources.storage).incoming_path(ID), age_s=4000)
    put(on_disk(resources.storage).path(ImageId("BBBBBBB")))
    await connection.execute(
        "insert into removals values ('STUCK02', now() - interval '60 s'), ('BBBBBBB', now() - interval '31 s')"
    )
    await sweep({"resources": resources})
    assert stored_files(settings) == []
    assert [row["image_id"] for row in await connection.fetch("select image_id from removals")] == ["STUCK02"]


def block(path: Path) -> Path:
    """Makes a folder, which cannot be unlinked as a file."""
    path.mkdir()
    os.utime(path, (0, 0))
    return path


async def test_stuck_received_files_starve_no_other(
    resources: Resources, connection: Any, tenant: Tenant, settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    await insert(connection, tenant, "ready", age_s=4000)
    for number in range(1300):  # more than two pages, with the others before, between and behind
        if number % 400 == 0:
            put(on_disk(resources.storage).incoming_path(ImageId(f"File{number:03}")), age_s=4000)
        if number == 600:
            put(on_disk(resources.storage).incoming_path(ID), age_s=4000)
        block(on_disk(resources.storage).incoming_path(ImageId(f"Stuck{number:03}")))
    await sweep({"resources": resources})
    assert stored_files(settings) == [on_disk(resources.storage).path(ID)]
    assert capfd.readouterr().out.count("sweep.reconcile_failed") == 1


async def test_stuck_removals_starve_no_other(
    resources: Resources, connection: Any, settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    for number in range(1200):
        block(on_disk(resources.storage).path(ImageId(f"Stuck{number:04}")))
    put(on_disk(resources.storage).path(ID))
    await connection.execute(
        "insert into removals select 'Stuck' || to_char(n, 'FM0000'), now() - interval '1 hour'"
        " from generate_series(0, 1199) as n"
    )
    await connection.execute("insert into removals values ($1, now() - interval '31 s')", ID)
    await sweep({"resources": resources})
    assert stored_files(settings) == []
    assert await connection.fetchval("select count(*) from removals where image_id = $1", ID) == 0
    assert await connection.fetchval("select count(*) from removals") == 1200
    assert capfd.readouterr().out.count("removal.failed") == 3


async def test_stuck_rendition_stops_no_removal(
    resources: Resources, connection: Any, tenant: Tenant, settings: Settings
) -> None:
    """Three images are deleted: the rendition is of the first, with the second as watermark; the third is unrelated."""
    resources.renditions.prepare()
    digest = "1" * 32
    stuck = resources.renditions.path(RenditionKey(ImageId("STUCK01"), digest))
    stuck.parent.mkdir(exist_ok=True)
    block(stuck)
    other = RenditionKey(ID, digest)
    await resources.renditions.write(other, b"x")
    await connection.execute(
        "insert into renditions (image_id, digest, watermark_id, size)"
        " values ('STUCK01', $1, 'MARK001', 1), ('AAAAAAA', $1, null, 1)",
        digest,
    )
    for image_id in ("STUCK01", "MARK001", ID):
        put(on_disk(resources.storage).path(ImageId(image_id)))
        await connection.execute("insert into removals values ($1, now() - interval '31 s')", image_id)
    await sweep({"resources": resources})
    assert stored_files(settings) == []
    assert not resources.renditions.path(other).exists()
    rows = await connection.fetch("select image_id from removals order by image_id")
    assert [row["image_id"] for row in rows] == ["MARK001", "STUCK01"]
    assert await connection.fetchval("select array_agg(image_id) from renditions") == ["STUCK01"]
    stuck.rmdir()
    await sweep({"resources": resources})
    assert await connection.fetchval("select count(*) from removals") == 0


@pytest.mark.slow
@pytest.mark.parametrize("how", ["folder away", "folder empty"])
async def test_storage_that_comes_back_loses_no_image(
    resources: Resources, connection: Any, tenant: Tenant, settings: Settings, burst: RunBurst, how: str
) -> None:
    await insert(connection, tenant, "pending", age_s=11)
    put(on_disk(resources.storage).path(ID))
    away = settings.storage_folder.with_name("away")
    settings.storage_folder.rename(away)
    if how == "folder empty":
        settings.storage_folder.mkdir()
    await sweep({"resources": resources})
    finished = asyncio.ensure_future(burst())
    await asyncio.sleep(1)
    assert await connection.fetchval("select state from images") == "pending"
    if how == "folder empty":
        settings.storage_folder.rmdir()
    away.rename(settings.storage_folder)
    done = await finished
    assert (done.complete, done.failed) == (1, 0)
    assert await connection.fetchval("select state from images") == "ready"


async def test_missing_file_that_comes_back_is_kept(
    resources: Resources, connection: Any, tenant: Tenant, api: Client, burst: RunBurst
) -> None:
    await insert(connection, tenant, "pending", age_s=3700)
    await sweep({"resources": resources})
    assert (await burst()).complete == 1
    shown = await api.get(f"/v1/images/{ID}", headers=tenant.headers)
    assert shown.status == 410
    assert (await shown.json())["error"]["code"] == "image-lost"
    assert await connection.fetchval("select count(*) from removals") == 0


async def test_lost_backlog_is_enqueued_again_at_once(resources: Resources, connection: Any, tenant: Tenant) -> None:
    await connection.execute(
        "insert into images (id, account_id, size, sha256, created_at) select 'AAAA' || n, $1, 10, '',"
        " date_trunc('second', now()) - interval '1 minute' from generate_series(100, 1299) as n",
        tenant.id,
    )
    await sweep({"resources": resources})
    assert await resources.redis.zcard(PROBE_QUEUE) == 1200


async def test_database_clock_set_back_delays_nothing(
    resources: Resources, connection: Any, tenant: Tenant, settings: Settings
) -> None:
    """Times that were written before lie in the future."""
    await insert(connection, tenant, "pending", age_s=-86400)
    put(on_disk(resources.storage).path(ID))
    put(on_disk(resources.storage).path(ImageId("BBBBBBB")))
    await connection.execute("insert into removals values ('BBBBBBB', now() + interval '1 day')")
    await connection.execute("update accounts set refreshed_at = now() + interval '1 day', used_bytes = 7")
    await sweep({"resources": resources})
    await refresh_accounts({"resources": resources})
    assert await resources.redis.zrange(PROBE_QUEUE, 0, -1) == [ID.encode()]
    assert stored_files(settings) == [on_disk(resources.storage).path(ID)]
    assert await connection.fetchval("select used_bytes from accounts") == 10


async def test_running_upload_outlasts_a_clock_jump(resources: Resources, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a host was suspended: the clock of the storage jumps ahead, and the monotonic clock does not."""
    await sweep({"resources": resources})
    arriving = put(on_disk(resources.storage).incoming_path(ID), age_s=2 * 3600)
    monotonic = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() - 2 * 3600)
    abandoned = await resources.storage.list_stale_uploads(3600, 10)
    monkeypatch.undo()
    assert abandoned == []
    assert arriving.exists()
