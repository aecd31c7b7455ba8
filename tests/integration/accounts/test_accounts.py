"""GET /v1/account and the counters behind it."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs

from service.accounts.accounts import AccountExists, create_account, load_account
from service.accounts.counters import Drift, list_stale, refresh_counters
from service.config.settings import Settings
from service.config.values import format_size
from service.errors import ServiceError
from service.ids import AccountId
from service.queue.jobs import open_redis
from tests.conftest import Client, NewTenant, Tenant
from tests.support.samples import jpeg
from worker.cron import counters
from worker.resources import Resources, open_resources


async def test_account_has_the_fields_of_the_contract(api: Client, connection: Any, new_tenant: NewTenant) -> None:
    tenant = await new_tenant(max_bytes=2147483648)
    await connection.execute("update accounts set used_bytes = 112332108, num_images = 42")
    response = await api.get("/v1/account", params={"key": tenant.key})
    assert response.status == 200
    assert await response.json() == {
        "success": True,
        "response": {
            "num_images": 42,
            "storage": {
                "max": 2147483648,
                "max_readable": "2 GB",
                "used": 112332108,
                "used_readable": "107 MB",
                "remaining": 2035151540,
                "remaining_readable": "1.9 GB",
            },
        },
    }


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KB"),
        (1536, "1.5 KB"),
        (10188, "9.9 KB"),
        (10230, "10 KB"),
        (1048575, "1 MB"),
        (107 << 20, "107 MB"),
        (5 << 50, "5 PB"),
        (5000 << 50, "5000 PB"),
    ],
)
def test_sizes_are_readable(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.usefixtures("worker")
async def test_an_upload_counts_at_once(api: Client, tenant: Tenant) -> None:
    body = jpeg()
    await api.post("/v1/images", data=body, headers=tenant.headers | {"Content-Type": "image/jpeg"})
    answer = await (await api.get("/v1/account", headers=tenant.headers)).json()
    assert answer["response"]["num_images"] == 1
    assert answer["response"]["storage"]["used"] == len(body)


async def test_remaining_bytes_are_never_negative(api: Client, connection: Any, tenant: Tenant) -> None:
    await connection.execute("update accounts set used_bytes = max_bytes + 5")
    answer = await (await api.get("/v1/account", headers=tenant.headers)).json()
    assert answer["response"]["storage"]["remaining"] == 0


async def test_drifted_counter_is_corrected(connection: Any, tenant: Tenant) -> None:
    await connection.execute(
        "insert into images (id, account_id, size, sha256) values ('AAAAAAA', $1, 70, ''), ('BBBBBBB', $1, 30, '')",
        tenant.id,
    )
    await connection.execute("update accounts set used_bytes = 999, num_images = 7")
    drift = await refresh_counters(connection, tenant.id)
    assert (drift.bytes, drift.images) == (100 - 999, 2 - 7)
    after = await load_account(connection, tenant.id)
    assert (after.used_bytes, after.num_images) == (100, 2)
    assert not await refresh_counters(connection, tenant.id)


async def test_oldest_changed_accounts_come_first(connection: Any, new_tenant: NewTenant) -> None:
    first, second, third = [await new_tenant() for _ in range(3)]
    for tenant in (first, second, third):
        await refresh_counters(connection, tenant.id)
    await connection.execute("update accounts set changed_at = now() where id = any($1)", [second.id, third.id])
    await connection.execute("update accounts set refreshed_at = '2020-01-01' where id = $1", third.id)
    assert await list_stale(connection, 10) == [third.id, second.id]
    assert await list_stale(connection, 1) == [third.id]
    assert await list_stale(connection, 10, [third.id]) == [second.id, third.id]
    assert await list_stale(connection, 10, [third.id, second.id]) == [third.id, second.id]


async def test_periodic_job_refreshes_accounts(connection: Any, tenant: Tenant, settings: Settings) -> None:
    await connection.execute("update accounts set used_bytes = 5, num_images = 1")
    async with open_resources(settings, open_redis(settings.redis_url)) as resources:
        await counters.refresh_accounts({"resources": resources})
    assert (await load_account(connection, tenant.id)).used_bytes == 0


async def test_an_account_whose_row_is_locked_keeps_no_other_from_being_refreshed(
    connection: Any, new_tenant: NewTenant, settings: Settings
) -> None:
    locked, other = [await new_tenant() for _ in range(2)]
    await connection.execute("update accounts set used_bytes = 5, num_images = 1")
    async with open_resources(settings, open_redis(settings.redis_url)) as resources:
        async with connection.transaction():
            await connection.execute("select from accounts where id = $1 for update", locked.id)
            await counters.refresh_accounts({"resources": resources}, first_try_s=0.5)
            assert (await load_account(connection, other.id)).used_bytes == 0
            assert (await load_account(connection, locked.id)).used_bytes == 5
        await counters.refresh_accounts({"resources": resources})
    assert (await load_account(connection, locked.id)).used_bytes == 0


class Refreshes:
    """Replaces refresh_counters. Records the accounts that were attempted; some of them never finish."""

    def __init__(self, *, budget_s: float, first_try_s: float) -> None:
        self._timings = {"budget_s": budget_s, "first_try_s": first_try_s}
        self.tried: list[AccountId] = []
        self.endless: set[AccountId] = set()

    async def __call__(self, connection: Any, account_id: AccountId) -> Drift:
        self.tried.append(account_id)
        if account_id in self.endless:
            await asyncio.sleep(60)
        return await refresh_counters(connection, account_id)

    async def run(self, resources: Resources) -> list[AccountId]:
        """The accounts of one run, in their order."""
        self.tried.clear()
        await counters.refresh_accounts({"resources": resources}, **self._timings)
        return list(self.tried)


@pytest.mark.slow
async def test_failed_refreshes_come_last_in_later_runs(
    connection: Any, new_tenant: NewTenant, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    refreshes = Refreshes(budget_s=1.5, first_try_s=0.3)
    monkeypatch.setattr(counters, "refresh_counters", refreshes)
    first, second, third, fourth = [(await new_tenant()).id for _ in range(4)]
    await connection.execute("update accounts set changed_at = '2100-01-01'")  # always stale
    refreshes.endless = {first, second, third}
    async with open_resources(settings, open_redis(settings.redis_url)) as resources:
        began = asyncio.get_running_loop().time()
        assert await refreshes.run(resources) == [first, second, third, fourth]
        assert asyncio.get_running_loop().time() - began < 2.5
        # The rest of a run goes to the account that had it last.
        assert await refreshes.run(resources) == [fourth, first]
        assert await refreshes.run(resources) == [fourth, second]
        refreshes.endless = {first, second}
        assert await refreshes.run(resources) == [fourth, third, first]
        assert list(resources.failed_refreshes) == [second, first]


async def test_next_run_starts_where_the_budget_ended(
    connection: Any, new_tenant: NewTenant, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    refreshes = Refreshes(budget_s=1, first_try_s=0.6)
    monkeypatch.setattr(counters, "refresh_counters", refreshes)
    first, second, third = [(await new_tenant()).id for _ in range(3)]
    refreshes.endless = {first, second}
    async with open_resources(settings, open_redis(settings.redis_url)) as resources:
        assert await refreshes.run(resources) == [first, second]
        refreshes.endless = set()
        assert await refreshes.run(resources) == [second, third, first]


async def test_lost_database_ends_the_refresh(
    new_tenant: NewTenant, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lose_connection(connection: Any, _: AccountId) -> Drift:
        connection.terminate()
        raise ConnectionResetError

    monkeypatch.setattr(counters, "refresh_counters", lose_connection)
    await new_tenant()
    async with open_resources(settings, open_redis(settings.redis_url)) as resources:
        with capture_logs() as logs:
            await counters.refresh_accounts({"resources": resources})
        [line] = [line for line in logs if line["event"] == "counters.deferred"]
        assert "database-unavailable" in line["error"]
        assert not resources.failed_refreshes


async def test_duplicate_account_name_is_refused(connection: Any, tenant: Tenant) -> None:
    with pytest.raises(AccountExists):
        await create_account(connection, tenant.name, 1)


async def test_concurrent_refreshes_apply_a_drift_once(connection: Any, tenant: Tenant, database_url: str) -> None:
    await connection.execute("update accounts set used_bytes = 100, num_images = 1")
    other = await asyncpg.connect(database_url)
    async with connection.transaction():
        await refresh_counters(connection, tenant.id)
        second = asyncio.create_task(refresh_counters(other, tenant.id))  # has read, waits for the row
        await asyncio.sleep(0.2)
    await second
    await other.close()
    after = await load_account(connection, tenant.id)
    assert (after.used_bytes, after.num_images) == (0, 0)


@pytest.mark.usefixtures("worker")
async def test_upload_succeeds_without_its_account(
    api: Client, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any) -> None:
        raise ServiceError("database-unavailable")

    monkeypatch.setattr("service.api.responses.load_account", away)
    response = await api.post(
        "/v1/images?with_account", data=jpeg(), headers=tenant.headers | {"Content-Type": "image/jpeg"}
    )
    assert response.status == 200
    assert "storage" in (await response.json())["response"]["account"]
