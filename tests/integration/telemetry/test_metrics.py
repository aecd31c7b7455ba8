"""`/metrics` of an application in the test's own process: what is counted, and within which bounds."""

from __future__ import annotations

import asyncio
import random
import shutil
import string
import time
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path
from typing import Any

import pytest
import redis as sync_redis
from aiohttp.test_utils import TestClient, TestServer

from service.api.app import create_app
from service.config.settings import Settings
from service.errors import CATALOGUE
from service.queue import jobs
from service.telemetry.metrics import metrics
from tests.conftest import Client, RunBurst, Servers, Tenant, resources_of
from tests.support.samples import jpeg, slow_svg
from tests.support.scrapes import Scrape
from worker.cron.counters import refresh_accounts
from worker.cron.sweep import sweep
from worker.resources import open_resources
from worker.sandbox.decoder import DecoderFailed
from worker.sandbox.pool import DecoderPool

pytestmark = pytest.mark.slow

RAW = {"Content-Type": "application/octet-stream"}
OF_QUEUE = {"daguerre_queue_depth", "daguerre_queue_oldest_seconds", "daguerre_workers"}


async def scrape(api: Client) -> Scrape:
    """What is counted now: the text of the last second is not used again."""
    resources_of(api).metrics_scrape.ttl_s = 0
    answer = await api.get("/metrics")
    assert answer.status == 200
    return Scrape(await answer.text())


async def upload(api: Client, tenant: Tenant, body: bytes) -> int:
    answer = await api.post("/v1/images", data=body, headers={**tenant.headers, **RAW})
    return answer.status


@pytest.mark.usefixtures("worker")
async def test_upload_is_counted(api: Client, tenant: Tenant) -> None:
    before = await scrape(api)
    body = jpeg()
    assert await upload(api, tenant, body) == 200
    after = await scrape(api)
    route = "/v1/images"
    assert after.rise(before, "daguerre_http_requests_total", method="POST", route=route, status="200") == 1
    assert after.rise(before, "daguerre_http_request_duration_seconds_count", route=route) == 1
    assert 0 < after.rise(before, "daguerre_http_request_duration_seconds_sum", route=route) < 5
    assert after.rise(before, "daguerre_upload_bytes_total") == len(body)
    assert after.rise(before, "daguerre_queue_wait_seconds_count") == 1
    assert after.rise(before, "daguerre_probe_duration_seconds_count") == 1
    assert after.value("daguerre_uploads_in_flight") == 0
    assert after.value("daguerre_workers") == 1
    assert after.value("daguerre_build_info") == 1


async def test_metrics_are_plain_text_without_a_key(api: Client) -> None:
    answer = await api.get("/metrics")
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.needs("promtool")
@pytest.mark.usefixtures("worker")
async def test_prometheus_finds_no_fault(api: Client, tenant: Tenant) -> None:
    await upload(api, tenant, jpeg())
    await upload(api, tenant, b"no picture")
    text = (await scrape(api)).text
    families = [family.name for family in metrics.describe()]
    assert [name for name in families if f"# TYPE {name}" not in text] == []
    check = await asyncio.create_subprocess_exec("promtool", "check", "metrics", stdin=PIPE, stdout=PIPE, stderr=STDOUT)
    output, _ = await check.communicate(text.encode())
    assert (check.returncode, output.decode()) == (0, "")


@pytest.mark.usefixtures("worker")
async def test_stored_images_and_disks_are_shown(
    api: Client, tenant: Tenant, settings: Settings, servers: Servers
) -> None:
    body = jpeg()
    assert await upload(api, tenant, body) == 200
    shown = await scrape(api)
    assert shown.value("daguerre_stored_images") == 1
    assert shown.value("daguerre_stored_bytes") == len(body)
    assert shown.value("daguerre_database_size_bytes") > 1_000_000
    for name in ("database", "redis", "storage"):
        assert shown.value(f"daguerre_{name}_up") == 1
    folders = {
        "storage": settings.storage_folder,
        "renditions": settings.renditions_folder,
        "database": servers.postgres.cluster,  # of this machine, behind a socket
    }
    for name, folder in folders.items():
        disk = shutil.disk_usage(folder)
        assert shown.value("daguerre_disk_size_bytes", disk=name) == disk.total
        assert (
            0
            < shown.value("daguerre_disk_free_bytes", disk=name)
            <= disk.total - shown.value("daguerre_disk_used_bytes", disk=name)
        )


@pytest.mark.settings(database_url="postgresql://127.0.0.1:1/daguerre", redis_url="redis://127.0.0.1:1/0")
async def test_unavailable_servers_are_shown_as_down(settings: Settings) -> None:
    (settings.storage_folder / "incoming").mkdir(exist_ok=True)
    async with TestClient(TestServer(create_app(settings))) as api:
        shown = await scrape(api)
    assert "daguerre_database_up 0.0" in shown.text
    assert "daguerre_redis_up 0.0" in shown.text
    assert "daguerre_storage_up 1.0" in shown.text
    assert not {"daguerre_stored_images", "daguerre_database_size_bytes"} & shown.names()
    assert shown.value("daguerre_disk_size_bytes", disk="storage") > 0


async def test_sizes_are_cached(api: Client, connection: Any, tenant: Tenant) -> None:
    await scrape(api)
    await connection.execute("update accounts set num_images = 7")
    assert (await scrape(api)).value("daguerre_stored_images") == 0


async def test_scrape_is_cached_for_a_second(api: Client) -> None:
    """So that the 12 ms that it costs are spent once a second, however many ask."""
    first = await (await api.get("/metrics")).text()
    await api.get("/healthz")
    answers = await asyncio.gather(*(api.get("/metrics") for _ in range(50)))
    assert {await answer.text() for answer in answers} == {first}
    await asyncio.sleep(1)
    later = Scrape(await (await api.get("/metrics")).text())
    assert later.rise(Scrape(first), "daguerre_http_requests_total", route="/metrics") == 51


async def test_failed_scrape_is_not_cached(api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise OSError("no folder")

    with monkeypatch.context() as patch:
        patch.setattr(type(metrics), "render", fail)
        assert (await api.get("/metrics")).status == 500
    assert (await api.get("/metrics")).status == 200


@pytest.mark.usefixtures("worker")
async def test_refused_picture_is_counted_by_code(api: Client, tenant: Tenant) -> None:
    before = await scrape(api)
    assert await upload(api, tenant, b"no picture") == 415
    after = await scrape(api)
    assert after.rise(before, "daguerre_probe_failures_total", code="unsupported-image") == 1
    assert after.rise(before, "daguerre_probe_failures_total") == 1
    assert after.rise(before, "daguerre_errors_total", code="unsupported-image") == 1
    assert after.rise(before, "daguerre_upload_bytes_total") == len(b"no picture")


@pytest.mark.settings(wait_s=0.2)
async def test_queue_without_workers_is_visible(api: Client, tenant: Tenant, burst: RunBurst) -> None:
    before = await scrape(api)
    assert await upload(api, tenant, jpeg()) == 202
    waiting = await scrape(api)
    assert waiting.value("daguerre_queue_depth") == 1
    assert waiting.value("daguerre_queue_oldest_seconds") >= 0.1
    assert waiting.value("daguerre_workers") == 0
    assert waiting.names() >= OF_QUEUE
    await burst()
    after = await scrape(api)
    assert after.value("daguerre_queue_depth") == after.value("daguerre_queue_oldest_seconds") == 0
    assert after.rise(before, "daguerre_queue_wait_seconds_count") == 1
    assert after.rise(before, "daguerre_queue_wait_seconds_sum") >= 0.1


async def test_labels_are_bounded(api: Client, tenant: Tenant) -> None:
    names = random.Random(7)

    def word() -> str:
        return "".join(names.choices(string.ascii_letters, k=8))

    for _ in range(200):
        path = names.choice([f"/{word()}", f"/v1/images/{word()}", f"/v1/images/{word()}/{word()}", "/v1/account"])
        method = names.choice(["GET", "POST", "DELETE", "PROPFIND", word().upper()])
        await api.request(method, path, headers=tenant.headers if names.random() < 0.5 else {})
        metrics.count_probe_failure(word())
    shown = await scrape(api)
    templates = {route.resource.canonical for route in create_app(Settings()).router.routes() if route.resource}
    assert shown.values_of("route") <= templates | {"unmatched"}
    assert {"unmatched", "/v1/images/{id}"} <= shown.values_of("route")
    assert shown.values_of("method") <= {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other"}
    assert "other" in shown.values_of("method")
    assert shown.values_of("code") == set(CATALOGUE)
    assert shown.values_of("status") <= {str(status) for status, _ in CATALOGUE.values()} | {
        "200",
        "202",
        "204",
        "206",
        "302",
        "304",
        "499",
    }


@pytest.mark.settings(redis_url="redis://127.0.0.1:1/0")
async def test_queue_is_omitted_without_redis(api: Client) -> None:
    began = time.monotonic()
    shown = await scrape(api)
    assert time.monotonic() - began < 1
    assert not OF_QUEUE & shown.names()
    assert "daguerre_build_info" in shown.names()


async def test_hanging_redis_delays_a_scrape_by_a_second(api: Client, redis_url: str) -> None:
    assert (await scrape(api)).names() >= OF_QUEUE
    with sync_redis.Redis.from_url(redis_url) as client:
        client.client_pause(2500)  # ends by itself: nothing else could end it
    began = time.monotonic()
    shown = await scrape(api)
    assert time.monotonic() - began < 2
    assert not OF_QUEUE & shown.names()


async def test_lost_child_is_counted(api: Client, tmp_path: Path) -> None:
    before = await scrape(api)
    picture = tmp_path / "picture"
    picture.write_bytes(slow_svg(1000))
    pool = DecoderPool(1, max_pixels=1_000_000, timeout_s=1)
    await pool.start()
    with pytest.raises(DecoderFailed):
        await pool.probe(str(picture))
    await pool.close()
    after = await scrape(api)
    assert after.rise(before, "daguerre_child_crashes_total") == 1
    assert after.rise(before, "daguerre_probe_duration_seconds_sum") >= 1


@pytest.mark.settings(wait_s=0.1)
async def test_repairs_of_periodic_jobs_are_counted(
    api: Client, tenant: Tenant, connection: Any, settings: Settings, redis_url: str
) -> None:
    await upload(api, tenant, jpeg())
    await upload(api, tenant, jpeg())
    await connection.execute("update images set created_at = now() - interval '1 minute'")
    await connection.execute("update accounts set num_images = 7")
    with sync_redis.Redis.from_url(redis_url) as client:
        lost, _ = client.zrange(jobs.PROBE_QUEUE, 0, -1)
        client.zrem(jobs.PROBE_QUEUE, lost)
    before = await scrape(api)
    redis = jobs.open_redis(settings.redis_url)
    async with open_resources(settings, redis) as resources:
        await sweep({"resources": resources})
        await refresh_accounts({"resources": resources})
    await redis.aclose(close_connection_pool=True)
    after = await scrape(api)
    assert after.rise(before, "daguerre_sweep_enqueued_total") == 1
    assert after.rise(before, "daguerre_account_corrections_total") == 1


async def test_client_that_leaves_is_counted_as_499(api: Client, tenant: Tenant) -> None:
    before = await scrape(api)
    _, writer = await asyncio.open_connection("127.0.0.1", api.port)
    head = f"POST /v1/images?key={tenant.key} HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 99\r\n"
    writer.write(head.encode() + b"\r\nsome")
    async with asyncio.timeout(5):
        while (await scrape(api)).value("daguerre_uploads_in_flight") != 1:
            await asyncio.sleep(0.01)
    writer.transport.abort()
    async with asyncio.timeout(5):
        while (await scrape(api)).rise(before, "daguerre_http_requests_total", status="499") != 1:
            await asyncio.sleep(0.01)
    assert (await scrape(api)).value("daguerre_uploads_in_flight") == 0
