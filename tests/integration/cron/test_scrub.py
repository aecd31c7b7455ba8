"""The scrub finds damaged files before a client does, slowly, and reports each of them once."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import pytest
from structlog.testing import capture_logs

from service.config.settings import Settings, SettingsError, load
from service.config.values import parse_period
from service.database import Database
from service.ids import ImageId
from service.storage.local.originals import LocalOriginals
from service.telemetry.metrics import metrics
from tests.conftest import Tenant
from tests.support.scrapes import Scrape
from tests.support.verify import PICTURE, insert, put
from tests.support.waiting import until, wait_for
from worker.cron import scrub

IDS = [ImageId(f"Image{number:02}") for number in range(6)]
DAMAGED = PICTURE[:-1] + bytes([PICTURE[-1] ^ 1])


scrubbing = partial(scrub.scrubbing, min_bytes_per_s=100 << 20)


@pytest.fixture
async def storage(settings: Settings, connection: Any, tenant: Tenant) -> LocalOriginals:
    """Contains six images."""
    storage = LocalOriginals(settings.storage_folder)
    storage.prepare()
    for image_id in IDS:
        await insert(connection, tenant, image_id=image_id)
        put(storage.path(image_id))
    return storage


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    async with Database.open(settings.database_url, connections=3) as database:
        yield database


def scrape() -> Scrape:
    return Scrape(metrics.render(None).decode())


async def end_of_round(connection: Any, number: int = 1) -> None:
    """Waits until `number` more rounds have ended."""
    for _ in range(number):
        started_at = await connection.fetchval("select started_at from scrub")

        async def is_over(started_at: object = started_at) -> bool:
            row = await connection.fetchrow("select started_at, is_over from scrub")
            return row is not None and row["started_at"] != started_at and row["is_over"]

        await until(is_over)


def named(logs: list[Any], event: str) -> list[tuple[str, str | None]]:
    return [(line["image_id"], line.get("what")) for line in logs if line["event"] == event]


@pytest.mark.slow
async def test_damaged_image_is_reported_once(storage: LocalOriginals, database: Database, connection: Any) -> None:
    put(storage.path(IDS[1]), DAMAGED)
    put(storage.path(IDS[2]), PICTURE[:9])
    storage.path(IDS[3]).unlink()
    storage.path(IDS[4]).unlink()
    storage.path(IDS[4]).mkdir()
    before = scrape()
    with capture_logs() as logs:
        for _ in range(2):  # the second one is of a worker after a restart
            async with scrubbing(database, storage, 1):
                await end_of_round(connection, 2)
    storage.path(IDS[4]).rmdir()
    assert named(logs, "scrub.damaged") == [
        (IDS[1], "its file is not what was sent: the SHA-256 differs"),
        (IDS[2], f"its file has 9 bytes instead of {len(PICTURE)}"),
        (IDS[3], "its file is missing"),
        (IDS[4], "its file cannot be read: it is a folder"),
    ]
    assert scrape().rise(before, "daguerre_scrub_damaged_total") == 4
    assert scrape().rise(before, "daguerre_scrub_images_total") >= 24


@pytest.mark.slow
async def test_repaired_image_may_be_reported_again(
    storage: LocalOriginals, database: Database, connection: Any
) -> None:
    with capture_logs() as logs:
        async with scrubbing(database, storage, 1):
            for content in (DAMAGED, PICTURE, DAMAGED):
                put(storage.path(IDS[1]), content)
                await end_of_round(connection, 2)
    assert [line["event"] for line in logs if "image_id" in line] == [
        "scrub.damaged",
        "scrub.recovered",
        "scrub.damaged",
    ]


@pytest.mark.slow
async def test_deleted_images_are_not_damaged(storage: LocalOriginals, database: Database, connection: Any) -> None:
    put(storage.path(IDS[1]), DAMAGED)
    async with scrubbing(database, storage, 1):
        await end_of_round(connection, 2)
        assert await connection.fetchval("select image_id from damaged_images") == IDS[1]
        await connection.execute("delete from images where id = $1", IDS[1])
        await end_of_round(connection, 2)
    assert await connection.fetchval("select count(*) from damaged_images") == 0


async def test_round_continues_after_a_restart(storage: LocalOriginals, database: Database, connection: Any) -> None:
    put(storage.path(IDS[0]), DAMAGED)
    put(storage.path(IDS[5]), DAMAGED)
    await connection.execute(
        "insert into scrub (holder, held_until, started_at, is_over, after_id)"
        " values ('ended', now() - interval '1 s', now() - interval '10 min', false, $1)",
        IDS[2],
    )
    before = scrape()
    async with scrubbing(database, storage, 3600):
        await until(lambda: connection.fetchval("select is_over from scrub"))
    assert await connection.fetchval("select array_agg(image_id) from damaged_images") == [IDS[5]]
    assert scrape().rise(before, "daguerre_scrub_images_total") == 3


@pytest.mark.slow
async def test_several_workers_read_each_image_once(
    storage: LocalOriginals, database: Database, connection: Any
) -> None:
    before = scrape()
    async with AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(scrubbing(database, storage, 5, min_bytes_per_s=1))
        await end_of_round(connection)
        assert scrape().rise(before, "daguerre_scrub_images_total") == len(IDS)


async def test_another_worker_takes_over(storage: LocalOriginals, database: Database, connection: Any) -> None:
    """The first one died, and its lease expires by PostgreSQL's clock."""
    await connection.execute(
        "insert into scrub (holder, held_until, started_at, is_over)"
        " values ('dead', now() + interval '1 s', now(), false)"
    )
    async with scrubbing(database, storage, 3):
        await asyncio.sleep(0.3)
        assert await connection.fetchval("select holder from scrub") == "dead"
        await until(lambda: connection.fetchval("select holder <> 'dead' and is_over from scrub"))


async def test_clock_set_back_stops_no_scrub(storage: LocalOriginals, database: Database, connection: Any) -> None:
    """The first worker died. Its lease and the start of the round lie in the future."""
    await connection.execute(
        "insert into scrub (holder, held_until, started_at, is_over)"
        " values ('dead', now() + interval '1 day', now() + interval '1 day', false)"
    )
    async with scrubbing(database, storage, 3):
        await until(lambda: connection.fetchval("select holder <> 'dead' and is_over from scrub"))


@pytest.mark.slow
async def test_reads_are_spread_over_the_period(storage: LocalOriginals, database: Database, connection: Any) -> None:
    async with scrubbing(database, storage, 3, min_bytes_per_s=1):
        begun = time.monotonic()
        await end_of_round(connection)
    assert time.monotonic() - begun > 2


async def test_storage_that_is_away_damages_none(
    storage: LocalOriginals, database: Database, connection: Any, settings: Settings
) -> None:
    away = settings.storage_folder.with_name("away")
    settings.storage_folder.rename(away)
    with capture_logs() as logs:
        async with scrubbing(database, storage, 1):
            await until(_logged(logs, "scrub.paused"))
            away.rename(settings.storage_folder)
            await end_of_round(connection)
    assert named(logs, "scrub.damaged") == []


async def test_wrong_storage_damages_none(
    storage: LocalOriginals, database: Database, connection: Any, tenant: Tenant
) -> None:
    for number in range(30):
        await insert(connection, tenant, image_id=f"Other{number:02}")
    with capture_logs() as logs:
        async with scrubbing(database, storage, 1):
            await until(_logged(logs, "scrub.paused"))
    assert named(logs, "scrub.damaged") == []
    assert "is it the right storage" in next(line["error"] for line in logs if line["event"] == "scrub.paused")


def _logged(logs: list[Any], event: str) -> Callable[[], Awaitable[bool]]:
    async def is_logged() -> bool:
        return any(line["event"] == event for line in logs)

    return is_logged


def start_worker(environment: dict[str, str], output: TextIO) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "service.cli", "worker"], env=environment, stderr=output)


@pytest.mark.slow
async def test_worker_scrubs_by_its_setting(storage: LocalOriginals, settings: Settings, tmp_path: Path) -> None:
    put(storage.path(IDS[1]), DAMAGED)
    log = tmp_path / "log"
    environment = {
        "PATH": os.environ["PATH"],
        "DAGUERRE_DATABASE_URL": settings.database_url,
        "DAGUERRE_REDIS_URL": settings.redis_url,
        "DAGUERRE_DATA": str(tmp_path),
        "DAGUERRE_STORAGE": str(settings.storage_folder),
        "DAGUERRE_SCRUB": "2s",
    }
    with log.open("w") as output:
        process = start_worker(environment, output)

    def has_started_and_scrubbed() -> bool:
        return {"scrub.damaged", "worker.started"} <= set(log.read_text().split('"')) or process.poll() is not None

    await asyncio.to_thread(wait_for, has_started_and_scrubbed)
    process.terminate()
    assert await asyncio.to_thread(process.wait, 20) == 0, log.read_text()
    assert f'"image_id":"{IDS[1]}"' in log.read_text()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("", None), ("7d", 604_800), ("12h", 43_200), ("30M", 1800), (" 90s ", 90), ("3650d", 315_360_000)],
)
def test_periods(text: str, seconds: int | None) -> None:
    assert parse_period(text) == seconds


@pytest.mark.parametrize("text", ["0d", "7", "d", "-1d", "1.5d", "7w", "99999d", "7 d", "9" * 5000 + "d", "off"])
def test_absurd_periods(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^DAGUERRE_SCRUB: .* is not a time"):
        load(scrub=text)
