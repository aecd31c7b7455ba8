"""Redis Sentinel: the primary is found by its name, and after a failover by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis as sync_redis

from service.config.settings import Settings
from tests.conftest import Tenant
from tests.support.daguerre_processes import Daguerre, Response, processes_of
from tests.support.folders import temporary_folder
from tests.support.journey import assert_is_discreet, run
from tests.support.samples import jpeg
from tests.support.sentinels import SENTINEL_PASSWORD, Sentinels, node_client, sentinels_running
from tests.support.waiting import until

pytestmark = pytest.mark.slow

# Detection after a second, an election, and as much again for a busy machine.
_MAX_OUTAGE_S = 30


@pytest.fixture
def sentinels() -> Iterator[Sentinels]:
    with temporary_folder() as folder, sentinels_running(folder) as running:
        yield running


@pytest.fixture
def settings(settings: Settings, sentinels: Sentinels) -> Settings:
    changes = {"redis_url": sentinels.url, "wait_s": 2, "rate_limit": "1000/s"}
    return Settings(**settings.model_dump(exclude_unset=True) | changes)


class Load:
    """One upload after the other, until it is stopped. Keeps the ids of all that were acknowledged."""

    def __init__(self, daguerre: Daguerre) -> None:
        self.responses: list[Response] = []
        self._daguerre = daguerre
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        width = 64
        while True:
            self.responses.append(await self._daguerre.upload(jpeg(width := width + 1, 48)))

    async def wait_served(self) -> None:
        """Returns after five uploads in turn were processed at once."""
        before = len(self.responses)

        def are_served() -> bool:
            last = self.responses[before:][-5:]
            return len(last) == 5 and {response.status for response in last} == {200}

        await until(are_served, _MAX_OUTAGE_S)

    async def stop(self) -> list[str]:
        """Asserts that each upload was acknowledged, or refused with Retry-After. Returns the ids."""
        self._task.cancel()
        await asyncio.wait([self._task])
        for response in self.responses:
            assert response.status in {200, 202, 503}, response
            assert response.status != 503 or int(response.headers["Retry-After"]) >= 1
        return [response.result["id"] for response in self.responses if response.status != 503]


async def assert_all_processed(daguerre: Daguerre, image_ids: list[str]) -> None:
    for image_id in image_ids:
        await daguerre.wait_processed(image_id, timeout_s=40)


async def test_failovers_lose_nothing(settings: Settings, tenant: Tenant, sentinels: Sentinels, tmp_path: Path) -> None:
    """First the primary is killed; then, after it has come back as a replica, its successor is demoted."""
    async with processes_of(settings, tenant.key, tmp_path / "logs") as daguerre:
        parts = await daguerre.start()
        load = Load(daguerre)
        await load.wait_served()
        first = sentinels.find_primary()
        first.kill()
        await until(lambda: sentinels.find_primary() is not first, _MAX_OUTAGE_S)
        await load.wait_served()
        first.start()
        await asyncio.to_thread(sentinels.wait_replicated)
        second = sentinels.find_primary()
        sentinels.fail_over()
        await until(lambda: sentinels.find_primary() is not second, _MAX_OUTAGE_S)
        await load.wait_served()
        await daguerre.wait_ready(_MAX_OUTAGE_S)
        await assert_all_processed(daguerre, await load.stop())
        await until(lambda: has_no_users(sentinels))
    for part in parts:
        assert_is_discreet(part.log.read_text())
        assert SENTINEL_PASSWORD not in part.log.read_text()
    assert "no problems" in run(settings, "verify").stdout


def has_no_users(sentinels: Sentinels) -> bool:
    """Returns whether Daguerre has no connection to the replica, on which it would be late for every failover."""
    primary = sentinels.find_primary()
    [replica] = [node for node in sentinels.nodes.values() if node is not primary]
    with (
        suppress(sync_redis.ConnectionError),
        node_client(replica.port) as client,
    ):  # it closes all when it changes its role
        users = {one["user"] for one in client.client_list() if one["id"] != str(client.client_id())}
        return users <= {"internal", "default"}
    return False


async def test_one_sentinel_is_enough(settings: Settings, sentinels: Sentinels) -> None:
    for sentinel in sentinels.sentinels[:2]:
        sentinel.kill()
    assert "has sent a heartbeat" in run(settings, "health", "worker").stderr  # it was read that there is none


async def test_wrong_sentinel_password_is_named(
    settings: Settings, tenant: Tenant, sentinels: Sentinels, tmp_path: Path
) -> None:
    url = sentinels.url.replace(SENTINEL_PASSWORD, "guessed")
    changed = settings.model_copy(update={"redis_url": url})
    async with processes_of(changed, tenant.key, tmp_path / "logs") as daguerre:
        api = daguerre.start_api()
        await api.wait_logged("api.listening")
        response = await daguerre.get("/readyz")
        assert "sentinels" in response.body["reasons"]["queue"]
        assert "guessed" not in api.log.read_text()
        assert_is_discreet(api.log.read_text())
