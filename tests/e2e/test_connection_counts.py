"""How many connections the processes open at most, as docs/operations.md says."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
import redis as sync_redis

from service.config.settings import Settings
from service.launcher.embedded.valkey import Valkey
from tests.conftest import Tenant, empty
from tests.support.daguerre_processes import Daguerre, processes_of
from tests.support.samples import jpeg

pytestmark = pytest.mark.slow

API_PROCESSES = 2
DATABASE_CONNECTIONS = 3
_ROUNDS = 6
OPERATIONS = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()


def read_bound(process: str) -> int:
    """Returns the number of connections to Redis in the documentation."""
    match = re.search(rf"\| {process} \| [^|]* \| ([0-9]+)[^|]* \|", OPERATIONS)
    assert match is not None
    return int(match[1])


@pytest.fixture
def settings(settings: Settings, own_valkey: Valkey) -> Settings:
    changes = {
        "redis_url": empty(own_valkey),
        "database_connections": DATABASE_CONNECTIONS,
        "rate_limit": "10000/s",
        "rendition_rate_limit": "10000/s",
        "not_found_rate_limit": "10000/s",
    }
    return Settings(**settings.model_dump(exclude_unset=True) | changes)


async def test_connections_stay_within_their_bounds(
    settings: Settings, tenant: Tenant, connection: Any, own_valkey: Valkey, tmp_path: Path
) -> None:
    async with processes_of(settings, tenant.key, tmp_path / "logs") as daguerre:
        daguerre.start_serve(API_PROCESSES)
        await daguerre.start_worker().wait_logged("worker.started")
        await daguerre.wait_ready()
        load = asyncio.gather(*(put_load_on(daguerre, number) for number in range(24)))
        redis, database = await count_until(load, own_valkey, connection)
    assert API_PROCESSES + 1 < database <= (API_PROCESSES + 1) * DATABASE_CONNECTIONS
    assert API_PROCESSES * 4 < redis <= API_PROCESSES * read_bound("API process") + read_bound("Worker")


async def count_until(load: Awaitable[Any], valkey: Valkey, connection: Any) -> tuple[int, int]:
    """Returns the most connections to Redis and to PostgreSQL until the load is over."""
    task, max_redis, max_database = asyncio.ensure_future(load), 0, 0
    statement = """
        select count(*) from pg_stat_activity
        where application_name = 'daguerre' and datname = current_database() and pid <> pg_backend_pid()
    """
    with sync_redis.Redis.from_url(valkey.url) as client:
        while not task.done():
            max_redis = max(max_redis, len(client.client_list()) - 1)
            max_database = max(max_database, await connection.fetchval(statement))
            await asyncio.sleep(0.02)
    await task
    return max_redis, max_database


async def put_load_on(daguerre: Daguerre, number: int) -> None:
    for turn in range(_ROUNDS):
        response = await daguerre.upload(jpeg(64 + number, 48 + turn))
        assert response.status in {200, 202}, response
        image_id = response.result["id"]
        for path in (f"/i/{image_id}?width={20 + turn}", f"/i/AAAA{number:03}", "/readyz", "/metrics"):
            async with daguerre.session.get(path) as answer:
                await answer.read()
        headers = {"X-Api-Key": daguerre.key}
        async with daguerre.session.delete(f"/v1/images/{image_id}", headers=headers) as deleted:
            assert deleted.status in {200, 404, 409}
