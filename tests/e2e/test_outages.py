"""The log of an outage of a dependency: a line at the start, one per minute and one at the end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs

from service.config.settings import Settings
from service.dependencies.outages import Outage
from service.dependencies.reasons import explain_storage
from service.launcher.embedded.valkey import Valkey
from tests.conftest import Servers, Tenant, empty
from tests.support.daguerre_processes import Daguerre, Part, processes_of
from tests.support.samples import jpeg
from tests.support.waiting import until

pytestmark = pytest.mark.slow

DISK_FULL = OSError(28, "No space left on device")


@pytest.fixture
def settings(settings: Settings, own_valkey: Valkey) -> Settings:
    return settings.model_copy(update={"redis_url": empty(own_valkey), "wait_s": 1})


def lines_of(part: Part) -> list[dict[str, Any]]:
    """Returns the log lines of a process without those of requests."""
    return [line for line in part.read_events() if line["event"] != "request"]


def events_of(part: Part, dependency: str) -> list[str]:
    return [line["event"] for line in lines_of(part) if line["event"].startswith(f"{dependency}.")]


async def wait_events(part: Part, dependency: str, *events: str) -> None:
    """Returns when these events of the dependency were logged. Asserts that no others were."""
    await until(lambda: len(events_of(part, dependency)) >= len(events))
    assert events_of(part, dependency) == [f"{dependency}.{event}" for event in events]


async def test_redis_outage_is_logged_once(daguerre: Daguerre, own_valkey: Valkey) -> None:
    parts = await daguerre.start()
    before = [len(lines_of(part)) for part in parts]
    own_valkey.stop()
    try:
        await daguerre.wait_unavailable("queue", "worker")
        for _ in range(5):  # each request and each worker fails again
            assert (await daguerre.upload(jpeg())).status in {202, 503}
    finally:
        own_valkey.start()
    await daguerre.wait_ready()
    for part, count in zip(parts, before, strict=True):
        await wait_events(part, "queue", "unavailable", "available")
        assert len(lines_of(part)) <= count + 2 + 6, lines_of(part)[count:]  # rate limits have their own lines
    assert lines_of(parts[0])[before[0]]["reason"] in {"the connection was lost", "its socket does not exist"}


async def test_database_outage_is_logged_once(daguerre: Daguerre, servers: Servers, settings: Settings) -> None:
    parts = await daguerre.start()
    name = settings.database_url.partition("@/")[2].partition("?")[0]
    admin = await asyncpg.connect(servers.postgres.dsn)
    try:
        await admin.execute(f"alter database {name} allow_connections false")
        await admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", name)
        await daguerre.wait_unavailable("database")
        for _ in range(5):
            assert (await daguerre.get("/v1/account")).status in {200, 503}
    finally:
        await admin.execute(f"alter database {name} allow_connections true")
        await admin.close()
    await daguerre.wait_ready()
    await wait_events(parts[0], "database", "unavailable", "available")


async def test_start_logs_unavailable_servers(
    settings: Settings, tenant: Tenant, tmp_path: Path, own_valkey: Valkey
) -> None:
    own_valkey.stop()
    secret = "opensesame"
    changed = settings.model_copy(update={"database_url": f"postgresql://nobody:{secret}@127.0.0.1:1/daguerre"})
    try:
        async with processes_of(changed, tenant.key, tmp_path / "logs") as daguerre:
            api = daguerre.start_serve(2)
            await until(lambda: len(events_of(api, "database")) == len(events_of(api, "queue")) == 2)
            worker = daguerre.start_worker()  # the API has created its folders
            await wait_events(worker, "database", "unavailable")
            await wait_events(worker, "queue", "unavailable")
            [line] = [line for line in lines_of(worker) if line["event"] == "database.unavailable"]
            assert line["reason"] == "nothing listens at its address"
            own_valkey.start()
            await wait_events(worker, "queue", "unavailable", "available")
            await until(lambda: events_of(api, "queue").count("queue.available") == 2)
            assert secret not in api.log.read_text() + worker.log.read_text()
    finally:
        if own_valkey.process is None:
            own_valkey.start()


async def test_start_without_tables_is_explained(
    settings: Settings, tenant: Tenant, servers: Servers, tmp_path: Path
) -> None:
    (settings.storage_folder / "incoming").mkdir(exist_ok=True)
    admin = await asyncpg.connect(servers.postgres.dsn)
    await admin.execute("create database without_tables")
    changed = settings.model_copy(update={"database_url": servers.postgres.dsn_of("without_tables")})
    try:
        async with processes_of(changed, tenant.key, tmp_path / "logs") as daguerre:
            for part in (daguerre.start_api(), daguerre.start_worker()):
                await wait_events(part, "database", "unavailable")
                [line] = [line for line in lines_of(part) if line["event"] == "database.unavailable"]
                assert "daguerre schema" in line["reason"]
                assert "Traceback" not in part.log.read_text()
    finally:
        await admin.execute("drop database without_tables with (force)")
        await admin.close()


def test_long_outage_is_logged_every_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    outage = Outage("storage", explain_storage)
    with capture_logs() as logs:
        for _ in range(2000):
            outage.report(DISK_FULL)
            outage.report_success()  # e.g. a check that passes although calls fail
            clock.now += 0.1
        clock.now += 2
        outage.report_success()
        outage.report_success()
    assert [line["event"] for line in logs] == ["storage.unavailable"] * 4 + ["storage.available"]
    assert logs[0]["reason"] == "its disk is full"
    assert logs[3]["seconds"] == 180
    assert logs[3]["failures"] > 1790


def test_intermittent_outage_is_logged_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    outage = Outage("storage", explain_storage)
    with capture_logs() as logs:
        for _ in range(100):  # 10 minutes
            outage.report(DISK_FULL)
            clock.now += 3
            outage.report_success()
            clock.now += 3
    assert len(logs) <= 2 + 11


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
