"""Limits of new renditions: expensive ones cost more, and no address or account takes all slots."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import ClientResponse
from PIL import Image

from service.accounts.signing_keys import create_signing_key
from service.api.app import create_app
from service.config.settings import Settings
from service.config.values import Rate
from service.limits.rate_limiter import RateLimiter
from service.renditions.signatures import sign
from tests.conftest import Client, NewTenant, Tenant, resources_of, run_worker
from tests.support import pictures
from tests.support.waiting import until
from worker.sandbox.decoder import DecoderLimits

pytestmark = pytest.mark.slow

Upload = Callable[..., Awaitable[str]]
PROXIES = "127.0.0.0/8"


@pytest.fixture
def upload(api: Client, tenant: Tenant, settings: Settings) -> Upload:
    async def post(data: bytes, owner: Tenant = tenant) -> str:
        async with run_worker(settings):
            headers = {**owner.headers, "Content-Type": "application/octet-stream"}
            answer = await api.post("/v1/images", data=io.BytesIO(data), headers=headers)
            assert answer.status in {200, 202}, await answer.text()
            image_id = str((await answer.json())["response"]["id"])
            await until(lambda: is_ready(image_id, owner))
            return image_id

    async def is_ready(image_id: str, owner: Tenant) -> bool:
        answer = await api.get(f"/v1/images/{image_id}", headers=owner.headers)
        return "status" not in (await answer.json())["response"]

    return post


@pytest.fixture
async def image_id(upload: Upload) -> str:
    return await upload(pictures.encode("jpeg", pictures.landscape(400, 300)))


def slow_drawing() -> bytes:
    """It has few pixels, and its line crosses itself so often that no estimate knows how long it takes."""
    curves = "".join(f"C{n % 97} {n * 7 % 89} {n * 3 % 83} {n % 79} {n * 5 % 73} {n % 71}" for n in range(1, 2500))
    path = f'<path d="M0 0{curves}" fill="none" stroke="#000" stroke-width="9"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="100" height="100">{path}</svg>'.encode()


def from_address(number: int) -> dict[str, str]:
    return {"X-Forwarded-For": f"198.51.100.{number}"}


async def code(answer: ClientResponse) -> tuple[int, str]:
    return answer.status, (await answer.json())["error"]["code"]


@asynccontextmanager
async def waiting(api: Client, *requests: tuple[str, int]) -> AsyncIterator[list[asyncio.Task[ClientResponse]]]:
    """Requests by path and the number of an address, that wait: no worker is there yet. They end with the block."""
    tasks = [asyncio.create_task(api.get(path, headers=from_address(number))) for path, number in requests]
    renditions = resources_of(api).delivery.renditions
    try:
        async with asyncio.timeout(10):
            while renditions.waiting.taken + sum(task.done() for task in tasks) < len(tasks):
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.settings(rendition_rate_limit="16/h", wait_s=20)
async def test_large_trim_costs_many_tokens(api: Client, upload: Upload, settings: Settings) -> None:
    large = await upload(pictures.encode("jpeg", Image.new("RGB", (6000, 4000), "teal")))
    async with run_worker(settings):
        answers = [await api.get(f"/i/{large}?width={width}&trim") for width in range(10, 15)]
    assert answers[0].status == 200
    assert await code(answers[-1]) == (429, "too-many-renditions")
    assert int(answers[-1].headers["Retry-After"]) > 0


@pytest.mark.settings(rendition_rate_limit="3/h", wait_s=20)
async def test_slow_rendition_is_settled_by_its_seconds(api: Client, upload: Upload, settings: Settings) -> None:
    slow = await upload(slow_drawing())
    async with run_worker(settings):
        assert (await api.get(f"/i/{slow}?width=10&format=png")).status == 200
        assert await code(await api.get(f"/i/{slow}?width=11&format=png")) == (429, "too-many-renditions")


@pytest.mark.settings(rendition_rate_limit="3/h", wait_s=20)
async def test_failed_rendition_is_settled_by_its_seconds(api: Client, upload: Upload, settings: Settings) -> None:
    slow = await upload(slow_drawing())
    async with run_worker(settings, limits=DecoderLimits(io_stall_cpu_share=0), render_timeout_s=0.1):
        for width in (10, 11):  # two tokens each
            assert await code(await api.get(f"/i/{slow}?width={width}&format=png")) == (422, "rendition-failed")
        assert await code(await api.get(f"/i/{slow}?width=12&format=png")) == (429, "too-many-renditions")


@pytest.mark.settings(rendition_rate_limit="12/h", wait_s=30)
async def test_ordinary_renditions_cost_a_token_each(api: Client, image_id: str, settings: Settings) -> None:
    async with run_worker(settings):
        for width in range(10, 18):
            assert (await api.get(f"/i/{image_id}?width={width}")).status == 200


@pytest.mark.settings(rendition_rate_limit="40/h", trusted_proxies=PROXIES, wait_s=30)
async def test_processes_charge_a_shared_rendition_once(
    api: Client, image_id: str, settings: Settings, aiohttp_client: Any, tenant: Tenant
) -> None:
    """The request of the second process, by another address, pays nothing in the end."""
    other: Client = await aiohttp_client(create_app(settings))
    path = f"/i/{image_id}?width=300&sharpen=2&format=gif"
    async with waiting(api, (path, 1)) as [first], waiting(other, (path, 2)) as [second]:
        async with run_worker(settings):
            assert (await first).status == (await second).status == 200
        await asyncio.sleep(0.1)
    rate = Rate(per_s=40 / 3600, burst=30)
    async with RateLimiter.open(settings.redis_url, rate, "renditions-of-address") as limiter:
        charges = resources_of(other).delivery.renditions._cost_limiter
        assert charges._charges == {}
        assert charges._addresses is not None
        found = await charges._addresses.admit("198.51.100.2"), await limiter.admit("198.51.100.1")
    left = [standing.remaining for standing in found if standing is not None]
    assert left[0] == 29
    assert left[1] < 29


@pytest.mark.settings(renditions_in_flight=8, trusted_proxies=PROXIES, wait_s=30)
async def test_requests_for_one_rendition_take_one_slot(api: Client, image_id: str, settings: Settings) -> None:
    requests = [(f"/i/{image_id}?width=10", 1 + number % 10) for number in range(50)]
    async with waiting(api, *requests) as many, waiting(api, (f"/i/{image_id}?width=20", 20)) as [other]:
        assert not other.done()
        async with run_worker(settings):
            assert {(await task).status for task in [*many, other]} == {200}


@pytest.mark.settings(renditions_in_flight=8, trusted_proxies=PROXIES, wait_s=30)
async def test_address_has_a_quarter_of_the_slots(
    api: Client, image_id: str, settings: Settings, connection: Any, tenant: Tenant
) -> None:
    secret = await create_signing_key(connection, tenant.name)
    await asyncio.sleep(0)
    resources_of(api).delivery.image_cache._policies.clear()
    first = [(f"/i/{image_id}?width={width}", 1) for width in (10, 11)]
    async with waiting(api, *first) as tasks:
        refused = await api.get(f"/i/{image_id}?width=12", headers=from_address(1))
        assert await code(refused) == (429, "too-many-renditions")
        assert refused.headers["Retry-After"] == "1"
        others = [(f"/i/{image_id}?width=12", 2), (sign(f"/i/{image_id}?width=13", secret), 1)]
        async with waiting(api, *others) as welcome, run_worker(settings):
            assert {(await task).status for task in [*tasks, *welcome]} == {200}
            assert (await api.get(f"/i/{image_id}?width=14", headers=from_address(1))).status == 200


@pytest.mark.settings(renditions_in_flight=40, trusted_proxies=PROXIES, wait_s=40)
async def test_expensive_rendition_takes_several_slots(api: Client, image_id: str, settings: Settings) -> None:
    """Else those of one address would keep the children busy for longer than another one waits."""
    dear = f"/i/{image_id}?enlarge&format=gif&width="
    async with waiting(api, (f"{dear}1600", 1)) as tasks:
        refused = await api.get(f"{dear}1601", headers=from_address(1))
        assert await code(refused) == (429, "too-many-renditions")
        async with waiting(api, (f"{dear}1601", 2)) as others, run_worker(settings):
            assert {(await task).status for task in [*tasks, *others]} == {200}


@pytest.mark.settings(renditions_in_flight=40, trusted_proxies=PROXIES, wait_s=1)
async def test_most_expensive_rendition_leaves_slots(api: Client, image_id: str) -> None:
    """Its estimate is half a minute of a child: hundreds of tokens."""
    dearest = f"/i/{image_id}?enlarge&format=gif&sharpen=3&width=7000"
    async with waiting(api, (dearest, 1)) as [dear], waiting(api, (f"/i/{image_id}?width=10", 2)) as [other]:
        assert await code(await other) == await code(await dear) == (503, "rendition-not-ready")


@pytest.mark.settings(renditions_in_flight=8, trusted_proxies=PROXIES, wait_s=30)
async def test_account_leaves_slots_to_others(
    api: Client, image_id: str, upload: Upload, new_tenant: NewTenant, settings: Settings
) -> None:
    strange = await upload(pictures.encode("png"), await new_tenant())
    async with waiting(api, *[(f"/i/{image_id}?width={10 + number}", number) for number in range(6)]) as tasks:
        for number in range(10, 20):
            refused = await api.get(f"/i/{image_id}?width={number + 10}", headers=from_address(number))
            assert await code(refused) == (429, "too-many-renditions")
        async with waiting(api, (f"/i/{strange}?width=10", 30)) as others, run_worker(settings):
            assert {(await task).status for task in [*tasks, *others]} == {200}


@pytest.mark.settings(renditions_in_flight=1, trusted_proxies=PROXIES, wait_s=30)
async def test_connections_for_a_rendition_are_bounded(api: Client, image_id: str, settings: Settings) -> None:
    """Of 16 for each place, an address has a quarter and a rendition half."""
    path = f"/i/{image_id}?width=10"
    async with waiting(api, *[(path, 1)] * 6, *[(path, 2)] * 6, *[(path, 3)] * 6) as tasks:
        refused = [task for task in tasks if task.done()]
        assert len(tasks) - len(refused) == 8
        assert {await code(task.result()) for task in refused} == {(429, "too-many-renditions")}
        async with run_worker(settings):
            assert {(await task).status for task in tasks if task not in refused} == {200}


@pytest.mark.settings(renditions_in_flight=2, trusted_proxies=PROXIES, wait_s=30)
async def test_busy_means_that_all_slots_are_taken(
    api: Client, image_id: str, upload: Upload, new_tenant: NewTenant, settings: Settings
) -> None:
    strange = await upload(pictures.encode("png"), await new_tenant())
    async with waiting(api, (f"/i/{image_id}?width=10", 1), (f"/i/{strange}?width=10", 2)) as tasks:
        assert not any(task.done() for task in tasks)
        busy = await api.get(f"/i/{image_id}?width=11", headers=from_address(3))
        assert await code(busy) == (503, "busy")
        async with waiting(api, (f"/i/{image_id}?width=10", 3)) as joining, run_worker(settings):
            assert {(await task).status for task in [*tasks, *joining]} == {200}
