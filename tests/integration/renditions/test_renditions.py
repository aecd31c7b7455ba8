"""A rendition is made once, is waited for whatever is lost on the way, and leaves nothing behind its image."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import redis as sync_redis
from aiohttp import ClientResponse
from arq import Retry
from structlog.testing import capture_logs

from service.config.settings import Settings
from service.ids import ImageId
from service.queue import jobs
from service.renditions import queries
from service.renditions.jobs import RenderOrder, encode_order
from service.renditions.queries import NewRendition, insert_renditions
from service.renditions.transformation import Transformation, Watermark
from service.storage.interface import RenditionKey
from service.storage.local.renditions import LocalRenditions
from service.telemetry.metrics import metrics
from tests.conftest import Client, Tenant, resources_of, run_worker
from tests.support import pictures
from tests.support.disks import on_disk
from tests.support.scrapes import Scrape
from tests.support.waiting import until
from worker.cron.eviction import NEXT_FOLDER, evict_renditions
from worker.render import render_image
from worker.resources import open_resources
from worker.sandbox.decoder import DecoderLimits

ID = ImageId("AAAAAAA")
RED = Transformation("png", 100, width=10)


@pytest.fixture
async def image_id(api: Client, settings: Settings, tenant: Tenant) -> str:
    """An image that is ready; there is no worker any more."""
    async with run_worker(settings):
        answer = await api.post("/v1/images", data=pictures.encode("png"), headers=tenant.headers)
        return str((await answer.json())["response"]["id"])


def files(settings: Settings) -> list[Path]:
    return [path for path in settings.renditions_folder.rglob("*") if path.is_file()]


def making(api: Client) -> dict[Any, Any]:
    return resources_of(api).delivery.renditions.in_progress


async def code(answer: ClientResponse) -> tuple[int, str]:
    return answer.status, (await answer.json())["error"]["code"]


@pytest.mark.slow
async def test_lost_result_costs_a_second(
    api: Client, image_id: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.queue.claims.encode_message", lambda _: b"")
    resources_of(api).delivery.renditions.waiter.poll_interval_s = 0.1
    async with run_worker(settings):
        assert (await api.get(f"/i/{image_id}?width=10")).status == 200


@pytest.mark.slow
@pytest.mark.parametrize("size", [10, 400])  # sent along with the result, and not
async def test_inline_file_equals_the_stored_one(api: Client, settings: Settings, tenant: Tenant, size: int) -> None:
    async with run_worker(settings):
        body = pictures.encode("png", pictures.landscape(400, 400))
        answer = await api.post("/v1/images", data=body, headers=tenant.headers)
        path = f"/i/{(await answer.json())['response']['id']}?width={size}&format=png"
        made = await api.get(path)
    resources_of(api).delivery.memory_cache.invalidate_all()
    found = await api.get(path)
    assert (made.status, made.headers["ETag"]) == (found.status, found.headers["ETag"])
    assert made.headers["Last-Modified"] == found.headers["Last-Modified"]
    assert await made.read() == await found.read()
    assert (len(await made.read()) > 32 << 10) == (size == 400)


@pytest.mark.slow
async def test_order_that_redis_lost_is_enqueued_again(api: Client, image_id: str, settings: Settings) -> None:
    waiter = resources_of(api).delivery.renditions.waiter
    waiter.lost_after_s, waiter.poll_interval_s = 0.2, 0.1
    asking = asyncio.create_task(api.get(f"/i/{image_id}?width=10"))
    with sync_redis.Redis.from_url(settings.redis_url) as client:
        await until(lambda: client.zcard(jobs.RENDER_QUEUE))
        client.delete(jobs.RENDER_QUEUE, jobs.RENDER_WAKEUP_KEY, *client.keys("arq:job:*"))
    async with run_worker(settings):
        assert (await asking).status == 200


@pytest.mark.slow
@pytest.mark.settings(render_timeout_s=0.1, wait_s=9)
async def test_failed_rendition_is_reported_and_not_retried_immediately(
    api: Client, tenant: Tenant, settings: Settings
) -> None:
    async with run_worker(settings, limits=DecoderLimits(io_stall_cpu_share=0)):
        data = pictures.encode("jpeg", pictures.landscape(3000, 2000), quality=30)
        answer = await api.post("/v1/images", data=data, headers=tenant.headers)
        path = f"/i/{(await answer.json())['response']['id']}?format=avif&width=3000&blur=100"
        assert await code(await api.get(path)) == (422, "rendition-failed")
        began = time.monotonic()
        assert await code(await api.get(path)) == (422, "rendition-failed")
        assert time.monotonic() - began < 0.2
        assert files(settings) == []


async def test_deleted_image_ends_its_pending_rendition(
    api: Client, image_id: str, settings: Settings, tenant: Tenant, connection: Any
) -> None:
    asking = asyncio.create_task(api.get(f"/i/{image_id}?width=10"))
    await until(lambda: making(api))
    await api.delete(f"/v1/images/{image_id}", headers=tenant.headers)
    async with run_worker(settings):
        assert await code(await asking) == (404, "image-not-found")
    assert files(settings) == []
    assert await connection.fetchval("select count(*) from renditions") == 0


@pytest.mark.slow
@pytest.mark.parametrize("query", ["", "?width=10"])
async def test_lost_file_is_reported(api: Client, image_id: str, settings: Settings, query: str) -> None:
    on_disk(resources_of(api).storage).path(ImageId(image_id)).unlink()
    async with run_worker(settings):
        assert await code(await api.get(f"/i/{image_id}{query}")) == (410, "image-lost")


@pytest.mark.slow
@pytest.mark.settings(renditions_in_flight=1)
async def test_waiting_requests_are_bounded(api: Client, image_id: str, settings: Settings) -> None:
    asking = asyncio.create_task(api.get(f"/i/{image_id}?width=10"))
    await until(lambda: making(api))
    assert await code(await api.get(f"/i/{image_id}?width=20")) == (503, "busy")
    async with run_worker(settings):
        assert (await asking).status == 200
        assert (await api.get(f"/i/{image_id}?width=20")).status == 200


@pytest.mark.slow
async def test_cancelled_request_leaves_the_others_waiting(api: Client, image_id: str, settings: Settings) -> None:
    first, second = (asyncio.create_task(api.get(f"/i/{image_id}?width=10")) for _ in range(2))
    await until(lambda: resources_of(api).delivery.renditions.waiting.taken == 2)
    first.cancel()
    async with run_worker(settings):
        assert (await second).status == 200
    assert resources_of(api).delivery.renditions.waiting.taken == 0
    assert making(api) == {}


@pytest.mark.slow
async def test_uses_are_recorded(
    api: Client, image_id: str, settings: Settings, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "USE_RECORD_INTERVAL_S", 0)
    async with run_worker(settings):
        await api.get(f"/i/{image_id}?width=10")
    await connection.execute("update renditions set used_at = '2001-01-01'")
    manager = resources_of(api).delivery
    manager.memory_cache.invalidate_all()
    await api.get(f"/i/{image_id}?width=10")
    await manager.renditions.write_uses()
    assert await connection.fetchval("select used_at > '2002-01-01' from renditions")


async def test_least_recently_used_are_evicted_first(settings: Settings, connection: Any, tenant: Tenant) -> None:
    changed = settings.model_copy(update={"renditions_size": 1000})
    await connection.execute(
        "insert into images (id, account_id, size, sha256, state) values ($1, $2, 1, '', 'ready')", ID, tenant.id
    )
    redis = jobs.open_redis(settings.redis_url)
    async with open_resources(changed, redis) as resources:
        keys = [RenditionKey(ID, f"{number:032x}") for number in range(12)]
        for age, key in enumerate(keys):
            size = (await resources.renditions.write(key, b"x" * 100)).size
            assert await insert_renditions(resources.database, [NewRendition(key, None, size)]) == [True]
            await connection.execute(
                "update renditions set used_at = now() - $1 * interval '1 hour' where digest = $2", age, key.digest
            )
        abandoned = changed.renditions_folder / "incoming" / "half"
        abandoned.write_bytes(b"x")
        os.utime(abandoned, (0, 0))
        await evict_renditions({"resources": resources})
        assert {path.name for path in files(settings)} == {resources.renditions.path(key).name for key in keys[:9]}
        assert await connection.fetchval("select sum(size) from renditions") == 900
    await redis.aclose(close_connection_pool=True)


@pytest.mark.slow
async def test_tiny_renditions_count_as_their_blocks(
    api: Client, image_id: str, settings: Settings, connection: Any
) -> None:
    async with run_worker(settings):
        for width in range(1, 6):
            assert (await api.get(f"/i/{image_id}?width={width}&format=jpeg")).status == 200
        await until(lambda: connection.fetchval("select count(*) = 5 from renditions"))
    taken = sum(path.stat().st_blocks * 512 for path in files(settings))
    assert await connection.fetchval("select sum(size) from renditions") == taken >= 5 * 4096
    redis = jobs.open_redis(settings.redis_url)
    async with open_resources(settings.model_copy(update={"renditions_size": 3 * taken // 5}), redis) as resources:
        await evict_renditions({"resources": resources})
    await redis.aclose(close_connection_pool=True)
    assert len(files(settings)) == 2  # nine tenths of three


@pytest.mark.parametrize(("size", "least"), [(0, 4096), (1, 4096), (4096, 4096), (4097, 8192), (1 << 20, 1 << 20)])
async def test_size_on_disk_counts_whole_blocks(tmp_path: Path, size: int, least: int) -> None:
    store = LocalRenditions(tmp_path / "renditions")
    store.prepare()
    key = RenditionKey(ID, "0" * 32)
    written = await store.write(key, b"x" * size)
    assert await store.find(key, lambda _: True) == written
    assert written.size == size
    assert max(least, store.path(key).stat().st_blocks * 512) == written.disk_size


async def test_sizes_of_older_rows_are_corrected(settings: Settings, connection: Any, tenant: Tenant) -> None:
    await connection.execute(
        "insert into images (id, account_id, size, sha256, state) values ($1, $2, 1, '', 'ready')", ID, tenant.id
    )
    redis = jobs.open_redis(settings.redis_url)
    async with open_resources(settings, redis) as resources:
        keys = [RenditionKey(ID, digit * 32) for digit in "123"]
        for key in keys:
            await resources.renditions.write(key, b"x" * 100)
            os.utime(resources.renditions.path(key), (0, 0))
        await insert_renditions(resources.database, [NewRendition(key, None, 100) for key in keys])
        shard = int(resources.renditions.path(keys[0]).parent.name, 16)
        await redis.set(NEXT_FOLDER, shard)
        await evict_renditions({"resources": resources})
    await redis.aclose(close_connection_pool=True)
    assert await connection.fetch("select distinct size from renditions") == [(4096,)]


@pytest.mark.usefixtures("api")
async def test_eviction_without_redis_is_no_warning(settings: Settings) -> None:
    """The lines of the outage say it."""
    redis = jobs.open_redis("redis://127.0.0.1:1")
    async with open_resources(settings, redis) as resources:
        with capture_logs() as logs:
            await evict_renditions({"resources": resources})
    await redis.aclose(close_connection_pool=True)
    levels = {line["event"]: line["log_level"] for line in logs}
    assert levels.pop("eviction.deferred") == "debug"
    assert levels.keys() <= {"queue.unavailable"}


async def test_rendition_made_during_eviction_stays(
    settings: Settings, connection: Any, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its file would count for nothing, and be evicted never."""
    changed = settings.model_copy(update={"renditions_size": 1})
    await connection.execute(
        "insert into images (id, account_id, size, sha256, state) values ($1, $2, 1, '', 'ready')", ID, tenant.id
    )
    key, other = RenditionKey(ID, "1" * 32), RenditionKey(ID, "2" * 32)
    redis = jobs.open_redis(settings.redis_url)
    async with open_resources(changed, redis) as resources:
        for one in (key, other):
            await insert_renditions(
                resources.database, [NewRendition(one, None, (await resources.renditions.write(one, b"x" * 100)).size)]
            )
        remove = LocalRenditions.remove

        async def remove_and_make_again(self: LocalRenditions, keys: Any) -> Any:
            stuck = await remove(self, keys)
            again = NewRendition(key, None, (await self.write(key, b"x" * 100)).size)
            await insert_renditions(resources.database, [again])
            return stuck

        with monkeypatch.context() as patched:
            patched.setattr(LocalRenditions, "remove", remove_and_make_again)
            await evict_renditions({"resources": resources})
        assert await connection.fetchval("select array_agg(digest) from renditions") == [key.digest]
        assert len(files(settings)) == 1
        await evict_renditions({"resources": resources})
        assert files(settings) == []
    await redis.aclose(close_connection_pool=True)


async def test_uses_are_recorded_in_key_order(settings: Settings, connection: Any, tenant: Tenant, api: Client) -> None:
    """So two processes that note the same uses never wait for each other."""
    await connection.execute(
        "insert into images (id, account_id, size, sha256, state) values ($1, $2, 1, '', 'ready')", ID, tenant.id
    )
    database = resources_of(api).database
    keys = [RenditionKey(ID, digit * 32) for digit in "123456789"]
    await insert_renditions(database, [NewRendition(key, None, 1) for key in keys])
    await connection.execute("update renditions set used_at = '2001-01-01'")
    async with database.connection() as noting:
        async with connection.transaction():
            await connection.execute("select from renditions where digest = $1 for update", keys[0].digest)
            task = asyncio.create_task(queries.record_uses(noting, keys[::-1]))
            while await connection.fetchval("select count(*) from pg_locks where not granted") == 0:
                await asyncio.sleep(0.01)
            for key in keys[1:]:
                await connection.execute("select from renditions where digest = $1 for update nowait", key.digest)
        await task


@pytest.mark.slow
async def test_renditions_folder_may_be_emptied(api: Client, image_id: str, settings: Settings) -> None:
    async with run_worker(settings):
        assert (await api.get(f"/i/{image_id}?width=10")).status == 200
        for folder in (settings.renditions_folder / "incoming", settings.renditions_folder):
            shutil.rmtree(folder)
            resources_of(api).delivery.memory_cache.invalidate_all()
            assert (await api.get(f"/i/{image_id}?width=10")).status == 200
            assert (await api.get(f"/i/{image_id}?width=20")).status == 200


async def test_deleted_image_gets_no_rendition_row(
    settings: Settings, connection: Any, tenant: Tenant, api: Client
) -> None:
    await connection.execute(
        "insert into images (id, account_id, size, sha256, state) values ($1, $2, 1, '', 'ready')", ID, tenant.id
    )
    database = resources_of(api).database
    there, gone = RenditionKey(ID, "1" * 32), RenditionKey(ImageId("BBBBBBB"), "1" * 32)
    made = [
        NewRendition(there, None, 1),
        NewRendition(gone, None, 1),
        NewRendition(there, gone.image_id, 1),
        NewRendition(there, None, 1),
    ]
    assert await insert_renditions(database, made[:2]) == [True, False]
    assert await insert_renditions(database, made[2:3]) == [False]
    assert await insert_renditions(database, [made[0], made[3]]) == [True, True]
    assert await connection.fetchval("select count(*) from renditions") == 1


def block(path: Path) -> None:
    """No file, so it cannot be unlinked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir()


async def test_stuck_renditions_stop_no_eviction(settings: Settings, connection: Any, tenant: Tenant) -> None:
    redis = jobs.open_redis(settings.redis_url)
    async with open_resources(settings.model_copy(update={"renditions_size": 100}), redis) as resources:
        for number in range(7):  # the oldest three are stuck, and as large as all that may be kept
            key = RenditionKey(ID, str(number) * 32)
            if number < 3:
                block(resources.renditions.path(key))
            else:
                await resources.renditions.write(key, b"x")
            await connection.execute(
                "insert into renditions (image_id, digest, size, used_at)"
                " values ($1, $2, 30, now() - $3 * interval '1 hour')",
                *key,
                10 - number,
            )
        await evict_renditions({"resources": resources}, batch_size=2)
        left = await connection.fetchval("select array_agg(left(digest, 1) order by digest) from renditions")
        assert left == ["0", "1", "2"]
        assert files(settings) == []
    await redis.aclose(close_connection_pool=True)


async def test_file_without_row_is_removed(settings: Settings, connection: Any, tenant: Tenant) -> None:
    """Else it would be evicted never."""
    await connection.execute(
        "insert into images (id, account_id, size, sha256, state) values ($1, $2, 1, '', 'ready')", ID, tenant.id
    )
    redis = jobs.open_redis(settings.redis_url)
    async with open_resources(settings, redis) as resources:
        kept, unknown, young = (RenditionKey(ID, digit * 32) for digit in "123")
        for key in (kept, unknown, young):
            await resources.renditions.write(key, b"x")
            if key != young:
                os.utime(resources.renditions.path(key), (0, 0))
        await insert_renditions(resources.database, [NewRendition(kept, None, 1)])
        shard = int(resources.renditions.path(kept).parent.name, 16)
        await redis.set(NEXT_FOLDER, 256 * 1000 + shard - 1)
        for names in ({kept, unknown, young}, {kept, young}):
            await evict_renditions({"resources": resources})
            assert {path.name for path in files(settings)} == {resources.renditions.path(key).name for key in names}
    await redis.aclose(close_connection_pool=True)


@pytest.mark.slow
async def test_deletion_removes_files_without_rows(
    api: Client, image_id: str, settings: Settings, tenant: Tenant, connection: Any
) -> None:
    async with run_worker(settings):
        await api.get(f"/i/{image_id}?width=10")
    await connection.execute("delete from renditions")
    assert len(files(settings)) == 1
    await api.delete(f"/v1/images/{image_id}", headers=tenant.headers)
    assert files(settings) == []


@pytest.mark.slow
async def test_stale_order_is_dropped_and_may_be_repeated(api: Client, image_id: str, settings: Settings) -> None:
    """A rush of orders leaves no hours of work behind."""
    resources_of(api).delivery.renditions.wait_s = 0.1
    assert await code(await api.get(f"/i/{image_id}?width=10")) == (503, "rendition-not-ready")
    with sync_redis.Redis.from_url(settings.redis_url) as client:
        client.zincrby(jobs.RENDER_QUEUE, -61_000, client.zrange(jobs.RENDER_QUEUE, 0, 0)[0])
        async with run_worker(settings):
            await until(lambda: not client.zcard(jobs.RENDER_QUEUE))
            assert files(settings) == []
            resources_of(api).delivery.renditions.wait_s = 5
            assert (await api.get(f"/i/{image_id}?width=10")).status == 200


async def test_order_of_another_version_is_dropped(settings: Settings) -> None:
    redis = jobs.open_redis(settings.redis_url)
    async with open_resources(settings, redis) as resources:
        context = {"resources": resources, "job_try": 2, "score": 0}
        assert await render_image(context, b"\xc1", request_id="x") is None
    await redis.aclose(close_connection_pool=True)


async def test_what_is_there_is_not_made_again(settings: Settings, image_id: str) -> None:
    order = RenderOrder.rendition(ImageId(image_id), RED)
    redis = jobs.open_redis(settings.redis_url)
    async with open_resources(settings, redis) as resources:
        await resources.renditions.write(RenditionKey(order.image_id, order.digest), pictures.encode("png"))
        context = {"resources": resources, "job_try": 2, "score": 0}
        before = Scrape(metrics.render(None).decode())
        end = await render_image(context, encode_order(order), request_id="x")
        assert Scrape(metrics.render(None).decode()).rise(before, "daguerre_render_duration_seconds_count") == 0
    await redis.aclose(close_connection_pool=True)
    assert end is not None
    assert end.error is None
    assert [path.read_bytes() for path in files(settings)] == [pictures.encode("png")]


@pytest.mark.slow
async def test_files_of_a_killed_worker_are_removed(
    api: Client, image_id: str, settings: Settings, tenant: Tenant
) -> None:
    """Its order runs again elsewhere and finds the file, but the row that names the watermark was lost."""
    async with run_worker(settings):
        body = pictures.encode("png", pictures.landscape(20, 20))
        answer = await api.post("/v1/images", data=body, headers=tenant.headers)
        over = ImageId((await answer.json())["response"]["id"])
    order = RenderOrder.rendition(ImageId(image_id), Transformation("png", 100, width=10, watermark=Watermark(over)))
    redis = jobs.open_redis(settings.redis_url)
    async with open_resources(settings, redis) as resources:
        await resources.renditions.write(RenditionKey(order.image_id, order.digest), pictures.encode("png"))
        context = {"resources": resources, "job_try": 2, "score": 0}
        await render_image(context, encode_order(order), request_id="x")
    await redis.aclose(close_connection_pool=True)
    assert len(files(settings)) == 1
    await api.delete(f"/v1/images/{over}", headers=tenant.headers)
    assert files(settings) == []


@pytest.mark.slow
async def test_renditions_folder_may_be_lost(api: Client, image_id: str, settings: Settings) -> None:
    async with run_worker(settings):
        shutil.rmtree(settings.renditions_folder)
        assert (await api.get(f"/i/{image_id}?width=10")).status == 200


async def test_order_is_retried_while_storage_is_away(settings: Settings, image_id: str) -> None:
    order = encode_order(RenderOrder.rendition(ImageId(image_id), RED))
    redis = jobs.open_redis(settings.redis_url)
    async with open_resources(settings, redis) as resources:
        away = settings.storage_folder.with_name("away")
        settings.storage_folder.rename(away)
        context = {"resources": resources, "job_try": 2, "score": 0}
        with pytest.raises(Retry):
            await render_image(context, order, request_id="x")
        end = await render_image(context | {"job_try": 20}, order, request_id="x")
        away.rename(settings.storage_folder)
        assert end is not None
        assert end.error == "rendition-not-ready"
    await redis.aclose(close_connection_pool=True)


async def test_a_patched_copy_has_the_patches_and_a_wrong_patch_leaves_nothing(tmp_path: Path) -> None:
    store = LocalRenditions(tmp_path / "renditions")
    store.prepare()
    source = tmp_path / "source"
    source.write_bytes(b"0123456789")
    key = RenditionKey(ID, "0" * 32)
    assert (await store.write_patched(key, source, [(2, b"xx"), (9, b"y")])).size == 10
    assert store.path(key).read_bytes() == b"01xx45678y"
    for patch in ((9, b"yy"), (-1, b"y")):
        with pytest.raises(OSError, match="outside"):
            await store.write_patched(RenditionKey(ID, "1" * 32), source, [patch])
    assert [path.name for path in store.root.rglob("*") if path.is_file()] == [store.path(key).name]
