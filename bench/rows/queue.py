"""The latency that the queue adds to a single upload, and the CPU usage of an idle worker.

The API's code runs in this process, on the database and the queue of a Daguerre with one worker. It measures what an
upload waits for after its row is committed: the job is enqueued, claimed and finished, its result is written to the
row, and the reply arrives. After each upload a decoder of this process probes the same file without a queue. The
latency of the queue is the first time minus the median of the second. So it includes the second commit of the row, and
all the time by which a probe exceeds the median.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import uvloop

from bench import turns, usage, wrk
from bench.photographs import photograph
from bench.targets import Target, daguerre
from service.api.resources import Resources, open_resources
from service.config import settings as configuration
from service.config.settings import Settings
from service.ids import AccountId
from service.images.models import NewImage
from service.launcher.embedded import instance
from service.uploads import receiving
from service.uploads.ingest import IngestItem
from worker.sandbox.pool import DecoderPool

MAX_P50_MS, MAX_P99_MS, MAX_IDLE_PERCENT = 1.2, 3.0, 1.0
_WARM_UP_UPLOADS = 20


def run(folder: Path, *, rounds: int, seconds: float, sizes: Sequence[str]) -> None:  # noqa: ARG001 - one size
    body = photograph("s")
    length_s = rounds * seconds
    with daguerre(folder) as target:
        time.sleep(turns.SETTLE_S)
        idle = _measure_idle(target, length_s)
        running = instance.find(target.folder)
        assert running is not None
        settings = configuration.load(
            data=target.folder, database_url=running.database_url, redis_url=running.redis_url
        )
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            queued, direct = runner.run(_measure(settings, target.key, body, length_s))
    print(f"\nThe queue, one upload at a time: {len(body) // 1000} KB, {len(queued)} uploads\n")
    print("| | p50 ms | p99 ms |")
    print("|---|---|---|")
    for name, times in (("from the job enqueued to the reply", queued), ("the probe alone", direct)):
        print(f"| {name} | {statistics.median(times):.2f} | {_p99(times):.2f} |")
    probe_p50 = statistics.median(direct)
    turns.print_maximum("Added by the queue, p50 ms", statistics.median(queued) - probe_p50, MAX_P50_MS)
    turns.print_maximum("Added by the queue, p99 ms", _p99(queued) - probe_p50, MAX_P99_MS)
    turns.print_maximum(f"CPU of an idle worker over {length_s:g} s, percent", idle, MAX_IDLE_PERCENT)


def _measure_idle(target: Target, seconds: float) -> float:
    """Returns the CPU usage of the worker and its decoder in percent of one core."""
    before = usage.by_part(target.roots)
    time.sleep(seconds)
    after = usage.by_part(target.roots)
    return sum(after[part].cpu_s - before[part].cpu_s for part in ("worker", "libvips")) / seconds * 100


async def _measure(settings: Settings, key: str, body: bytes, seconds: float) -> tuple[list[float], list[float]]:
    """Returns the milliseconds of each upload through the queue, and of each probe alone."""
    pool = DecoderPool(1, max_pixels=settings.max_pixels, timeout_s=settings.probe_timeout_s)
    queued: list[float] = []
    direct: list[float] = []
    await pool.start()
    try:
        async with open_resources(settings) as service:
            account = await service.keys.find_account(key)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline or len(queued) < 2 * _WARM_UP_UPLOADS:
                new = await _accept(service, account.id, body)
                queued.append(await _time_job(service, new))
                paths = await service.storage.paths_for_decoding(new.id)
                started = time.perf_counter()
                await pool.probe(*paths)
                direct.append((time.perf_counter() - started) * 1000)
    finally:
        await pool.close()
    return queued[_WARM_UP_UPLOADS:], direct[_WARM_UP_UPLOADS:]


async def _accept(service: Resources, account_id: AccountId, body: bytes) -> NewImage:
    async def chunks() -> AsyncIterator[bytes]:
        yield body

    upload = await receiving.receive(chunks(), service.storage, service.upload_limits)
    new = NewImage(upload.id, account_id, upload.size, upload.sha256, [])
    await service.ingest.ingest_batcher.submit(IngestItem(upload.file, new))
    return new


async def _time_job(service: Resources, new: NewImage) -> float:
    """Waits like `Ingest.store` and returns the milliseconds. Raises BenchError if the image is not ready then."""
    started = time.perf_counter()
    image = await service.ingest.wait(new, "bench")
    elapsed_ms = (time.perf_counter() - started) * 1000
    if image is None or image.state != "ready":
        raise wrk.BenchError(f"an image is {image.state if image else 'still pending'}")
    return elapsed_ms


def _p99(times: Sequence[float]) -> float:
    return statistics.quantiles(times, n=100)[98]
