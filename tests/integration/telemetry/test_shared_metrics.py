"""`/metrics` of real processes: what is merged, what outlives a process, and what a worker shows by itself."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from service.api.app import create_app
from service.config.settings import Settings
from service.errors import CATALOGUE
from service.telemetry import metric_files
from tests.support.daguerre_processes import Daguerre, Part
from tests.support.folders import temporary_folder
from tests.support.samples import jpeg
from tests.support.scrapes import Scrape
from tests.support.up import up
from tests.support.waiting import until, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


async def scrape(daguerre: Daguerre) -> Scrape:
    """Returns a scrape, which may be up to a second old: a process uses its text again that long."""
    async with daguerre.session.get("/metrics") as answer:
        assert answer.status == 200
        return Scrape(await answer.text())


async def start_apis(daguerre: Daguerre, count: int) -> list[Part]:
    parts = [daguerre.start_api() for _ in range(count)]
    for part in parts:
        await part.wait_logged("api.listening")
    return parts


async def ask_each(daguerre: Daguerre, apis: list[Part]) -> int:
    """Requests an account until every process has answered. Returns the number of requests."""
    requests = 0

    async def have_all_answered() -> bool:
        nonlocal requests
        await daguerre.get("/v1/account")
        requests += 1
        return all(api.count_requests(path="/v1/account") for api in apis)

    await until(have_all_answered)
    return requests


def total(shown: Scrape) -> float:
    return shown.value("daguerre_http_requests_total", route="/v1/account", status="200")


async def begin_upload(daguerre: Daguerre, body: bytes = b"some") -> asyncio.StreamWriter:
    _, writer = await asyncio.open_connection(*daguerre.listener.getsockname())
    head = f"POST /v1/images?key={daguerre.key} HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 9\r\n"
    writer.write(head.encode() + b"\r\n" + body)
    return writer


async def wait_in_flight(daguerre: Daguerre, count: int) -> None:
    async def is_so() -> bool:
        return (await scrape(daguerre)).value("daguerre_uploads_in_flight") == count

    await until(is_so)


async def test_every_process_shows_all_counts(daguerre: Daguerre) -> None:
    apis = await start_apis(daguerre, 2)
    worker = daguerre.start_worker()
    await worker.wait_logged("worker.started")
    await daguerre.wait_ready()
    assert (await daguerre.upload(jpeg())).status == 200
    requests = await ask_each(daguerre, apis)
    await wait_counted(daguerre, requests, in_flight=0)  # each process adds its own counts at intervals
    for _ in range(10):
        shown = await scrape(daguerre)
        assert total(shown) == requests
        assert shown.value("daguerre_http_request_duration_seconds_count", route="/v1/account") == requests
        assert shown.value("daguerre_probe_duration_seconds_count") == 1
        assert shown.value("daguerre_queue_wait_seconds_count") == 1
        assert shown.value("daguerre_workers") == shown.value("daguerre_build_info") == 1
        assert shown.values_of("code") == set(CATALOGUE)
    assert not any(api.count_requests(path="/metrics") for api in apis)


async def test_killed_process_keeps_counts_without_gauges(daguerre: Daguerre, settings: Settings) -> None:
    [killed] = await start_apis(daguerre, 1)
    writer = await begin_upload(daguerre)
    await wait_in_flight(daguerre, 1)
    [survivor] = await start_apis(daguerre, 1)
    requests = await ask_each(daguerre, [killed, survivor])
    await wait_counted(daguerre, requests, in_flight=1)
    killed.process.kill()
    await killed.exit_code()
    await wait_counted(daguerre, requests, in_flight=0)
    writer.close()

    files = sorted(settings.metrics_folder.iterdir())
    for _ in range(2):
        [replacement] = await start_apis(daguerre, 1)
        requests += await ask_each(daguerre, [replacement])
        await wait_counted(daguerre, requests, in_flight=0)
        replacement.process.kill()
        await replacement.exit_code()
    assert sorted(settings.metrics_folder.iterdir()) == files


async def wait_counted(daguerre: Daguerre, requests: int, *, in_flight: int) -> None:
    """Returns when all processes show these values. Each uses the text of a scrape again for a second."""

    async def are_counted() -> bool:
        scrapes = [await scrape(daguerre) for _ in range(40)]  # so that each process is asked
        return all(
            (total(shown), shown.value("daguerre_uploads_in_flight")) == (requests, in_flight) for shown in scrapes
        )

    await until(are_counted)


async def test_first_process_starts_from_zero(daguerre: Daguerre) -> None:
    for _ in range(2):
        [api] = await start_apis(daguerre, 1)
        await daguerre.get("/v1/account")
        assert total(await scrape(daguerre)) == 1
        api.process.kill()
        await api.exit_code()


async def test_worker_port_shows_its_own_metrics(daguerre: Daguerre) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    daguerre.settings = daguerre.settings.model_copy(update={"metrics_port": port})
    _, worker = await daguerre.start()
    assert (await daguerre.upload(jpeg())).status == 200
    async with daguerre.session.get(f"http://127.0.0.1:{port}/metrics") as answer:
        own = Scrape(await answer.text())
    assert own.value("daguerre_probe_duration_seconds_count") == own.value("daguerre_queue_wait_seconds_count") == 1
    assert own.value("daguerre_build_info") == 1
    assert own.value("daguerre_http_requests_total") == 0
    shown = await scrape(daguerre)
    assert shown.value("daguerre_probe_duration_seconds_count") == 0
    assert shown.value("daguerre_upload_bytes_total") == len(jpeg())
    await worker.wait_logged("metrics.listening")


@pytest.mark.settings(metrics_dir="/dev/null/metrics")
async def test_unusable_folder_disables_sharing_only(daguerre: Daguerre) -> None:
    [api] = await start_apis(daguerre, 1)
    await daguerre.get("/v1/account")
    assert total(await scrape(daguerre)) == 1
    await api.wait_logged("metrics.not_shared")


async def test_malformed_requests_are_counted(daguerre: Daguerre) -> None:
    await start_apis(daguerre, 1)
    for request in (
        b"BREW /v1/images HTTP/1.1\r\n\r\n",
        b"GET /v1/account HTTP/1.1\r\nHost: x\r\nExpect: more\r\n\r\n",
    ):
        reader, writer = await asyncio.open_connection(*daguerre.listener.getsockname())
        writer.write(request)
        await reader.readline()
        writer.close()
    shown = await scrape(daguerre)
    assert shown.value("daguerre_http_requests_total", route="unmatched", method="other", status="400") == 1
    assert shown.value("daguerre_http_requests_total", route="unmatched", method="GET", status="417") == 1
    assert shown.value("daguerre_errors_total", code="bad-request") == 1
    assert shown.value("daguerre_errors_total", code="expectation-failed") == 1


@pytest.mark.settings(wait_s=5)  # longer than a scrape is used for
@pytest.mark.parametrize("body", [b"some", b"the whole"], ids=["inside the body", "before the answer"])
async def test_client_that_leaves_is_counted_as_499(daguerre: Daguerre, body: bytes) -> None:
    await start_apis(daguerre, 1)
    writer = await begin_upload(daguerre, body)
    await wait_in_flight(daguerre, 1)
    writer.transport.abort()
    await wait_in_flight(daguerre, 0)
    shown = await scrape(daguerre)
    assert shown.value("daguerre_http_requests_total", route="/v1/images") == 1
    assert shown.value("daguerre_http_requests_total", route="/v1/images", status="499") == 1
    assert shown.value("daguerre_errors_total") == 0


def test_up_merges_and_removes_metrics() -> None:
    with temporary_folder() as place:
        with up(place / "data", "--workers", "2", env={"DAGUERRE_METRICS_PORT": "9"}) as started:
            key, sample = started.key, started.sample
            assert started.get(f"/v1/images?key={key}", sample.read_bytes())[0] == 200
            assert Scrape(started.get("/metrics")[1]).value("daguerre_probe_duration_seconds_count") == 1
            # It is ready with its first worker.
            wait_for(lambda: Scrape(started.get("/metrics")[1]).value("daguerre_workers") == 2)
            files = Settings(data=place / "data").metrics_folder
            wait_for(lambda: len(list(files.glob("*.lock"))) == 4)
        assert not files.exists()


def test_other_files_are_not_touched(tmp_path: Path) -> None:
    others = {tmp_path / name for name in ("library.db", "counter_a.db", "yarn.lock", "notes")}
    for other in others:
        other.touch()
    (tmp_path / "counter_7.db").touch()
    assert metric_files.take_slot(tmp_path) == "1"
    assert {tmp_path / "counter_1.db", *others} <= set(tmp_path.iterdir())
    assert tmp_path / "counter_7.db" not in set(tmp_path.iterdir())
    metric_files.remove(tmp_path)
    assert set(tmp_path.iterdir()) == others


def test_all_metrics_fit_the_reserved_space(tmp_path: Path) -> None:
    """A file that grows on a full disk ends its process."""
    script = f"""
from pathlib import Path
from service.errors import CATALOGUE
from service.telemetry.metrics import metrics
metrics.share(Path({str(tmp_path)!r}))
for route in {sorted({r.resource.canonical for r in create_app(Settings()).router.routes() if r.resource})}:
    for status in (200, 202, 499, *{sorted({status for status, _ in CATALOGUE.values()})}):
        metrics.requests.count_response("OPTIONS", route, status, None, 1)
for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other"):
    for status in (400, 404, 405, 417, 499):
        metrics.requests.count_response(method, "unmatched", status, None, 1)
metrics.requests.flush()
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    for kind, size in metric_files.RESERVED_BYTES.items():
        assert (tmp_path / f"{kind}_1.db").stat().st_size == size
