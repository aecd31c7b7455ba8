"""What is on its way counts against its account: declared bodies, chunked ones, downloads, and repeats."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from service.config.settings import Settings
from service.errors import ServiceError
from service.shared_memory import in_flight_bytes
from service.shared_memory.in_flight_bytes import SLOTS, InFlightBytes
from service.telemetry.metrics import metrics
from tests.conftest import Client, NewTenant, Tenant, resources_of
from tests.support.api import error_of
from tests.support.daguerre_processes import processes_of
from tests.support.samples import jpeg, stored_files
from tests.support.waiting import until

IMAGE = {"Content-Type": "image/jpeg"}
MB = 1 << 20
SMALL = jpeg()


def count_incoming(settings: Settings) -> int:
    total = 0
    for path in stored_files(settings):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def head(key: str, *headers: str) -> bytes:
    lines = ["POST /v1/images HTTP/1.1", "Host: x", f"X-Api-Key: {key}", "Content-Type: image/jpeg", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def send(port: int, request: bytes, body: bytes, *, is_chunked: bool) -> str:
    """Send all but the body's end; answers what the server said within a moment, "" if it waits for more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for start in range(0, len(body), 65536):
            piece = body[start : start + 65536]
            writer.write(request + (b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece))
            request = b""
            await asyncio.sleep(0.01)
        async with asyncio.timeout(3):
            return (await reader.read(65536)).decode()
    except (TimeoutError, ConnectionError):
        return ""
    finally:
        writer.transport.abort()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_bodies_in_flight_keep_to_the_quota(settings: Settings, new_tenant: NewTenant, tmp_path: Path) -> None:
    """Over both processes, declared and chunked, with and without a key for repeats."""
    tenant = await new_tenant(max_bytes=MB)
    async with processes_of(settings, tenant.key, tmp_path / "logs") as daguerre:
        serve = daguerre.start_serve(2)
        await serve.wait_logged("api.listening", 2)
        for _ in range(10):  # any of the processes may respond: each refuses uploads until it hears of results
            await daguerre.wait_unavailable("worker")
        sizes, ended = [0], threading.Event()

        def measure() -> None:
            while not ended.wait(0.002):
                sizes.append(count_incoming(settings))

        measuring = asyncio.create_task(asyncio.to_thread(measure))
        sending = []
        for number in range(40):
            repeat = [f"Idempotency-Key: k{number % 3}"] if number % 4 > 1 else []
            declared = head(tenant.key, f"Content-Length: {MB - 1000}", *repeat)
            chunked = head(tenant.key, "Transfer-Encoding: chunked", *repeat)
            is_chunked = number % 2 == 0
            body = os.urandom(MB - 2000)
            sending.append(send(daguerre.port, chunked if is_chunked else declared, body, is_chunked=is_chunked))
        answers = await asyncio.gather(*sending)
        ended.set()
        await measuring
        assert sum('"quota-exceeded"' in answer for answer in answers) >= 15, answers
        assert len(sizes) > 20
        assert max(sizes) <= MB
        await until(lambda: count_incoming(settings) == 0)


@pytest.mark.usefixtures("worker")
async def test_bodies_within_the_quota_are_accepted(api: Client, new_tenant: NewTenant) -> None:
    tenant = await new_tenant(max_bytes=20 * len(SMALL))

    async def chunked() -> AsyncIterator[bytes]:
        yield SMALL[:700]
        await asyncio.sleep(0.05)
        yield SMALL[700:]

    async def post(number: int) -> int:
        data = SMALL if number % 2 else chunked()
        async with api.post("/v1/images", data=data, headers=tenant.headers | IMAGE) as answer:
            return answer.status

    assert await asyncio.gather(*(post(number) for number in range(20))) == [200] * 20
    assert await asyncio.gather(*(post(number) for number in range(4))) == [403] * 4


@pytest.mark.usefixtures("worker")
async def test_chunked_body_is_cut_off_at_the_quota(api: Client, new_tenant: NewTenant, settings: Settings) -> None:
    tenant = await new_tenant(max_bytes=MB)
    before = metrics.upload_bytes._value.get()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(65536)
            await asyncio.sleep(0)

    answer = await api.post("/v1/images", data=endless(), headers=tenant.headers | IMAGE)
    assert (await error_of(answer))[:2] == (403, "quota-exceeded")
    assert MB < metrics.upload_bytes._value.get() - before < 2 * MB
    assert stored_files(settings) == []


@pytest.mark.settings(fetch_allow="127.0.0.1", wait_s=0)
async def test_downloads_count_while_they_arrive(api: Client, new_tenant: NewTenant, settings: Settings) -> None:
    tenant = await new_tenant(max_bytes=MB)
    going_on = asyncio.Event()

    async def begin(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={} if "chunked" in request.query else {"Content-Length": str(MB - 9)})
        await response.prepare(request)
        await response.write(bytes(MB - 10))
        await going_on.wait()
        return response

    app = web.Application()
    app.router.add_get("/", begin)
    async with TestServer(app) as origin, AsyncExitStack() as stack:
        stack.callback(going_on.set)

        async def get(number: int) -> int:
            params = {"url": str(origin.make_url("/")) + ("?chunked=1" if number % 2 else "")}
            async with api.get("/v1/images", params=params, headers=tenant.headers) as answer:
                return answer.status

        asking = [asyncio.create_task(get(number)) for number in range(8)]
        await until(lambda: sum(task.done() for task in asking) >= 7)
        assert count_incoming(settings) <= MB
        assert {task.result() for task in asking if task.done()} == {403}
        going_on.set()
        await asyncio.gather(*asking)


@pytest.mark.settings(uploads_in_flight=64)
@pytest.mark.usefixtures("worker")
async def test_repeats_of_a_stored_picture_take_turns(api: Client, new_tenant: NewTenant, settings: Settings) -> None:
    """The account is full of the picture itself: each repeat may arrive, and not all of them together."""
    picture = jpeg(900, 700, quality=95)
    tenant = await new_tenant(max_bytes=len(picture))
    headers = tenant.headers | IMAGE | {"Idempotency-Key": "once"}
    first = await (await api.post("/v1/images", data=picture, headers=headers)).json()
    ended, most = asyncio.Event(), 0

    async def measure() -> None:
        nonlocal most
        while not ended.is_set():
            most = max(most, resources_of(api).admission._reservations.reserved)
            await asyncio.sleep(0)

    async def post() -> Any:
        async with api.post("/v1/images", data=picture, headers=headers) as answer:
            return await answer.json()

    measuring = asyncio.create_task(measure())
    assert await asyncio.gather(*(post() for _ in range(12))) == [first] * 12
    ended.set()
    await measuring
    assert 0 < most <= len(picture)


@pytest.mark.usefixtures("worker")
async def test_account_far_from_its_quota_skips_the_database(
    api: Client, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        raise ServiceError("database-unavailable")

    monkeypatch.setattr("service.uploads.receiving.load_account", refuse)
    for _ in range(5):
        answer = await api.post("/v1/images", data=SMALL, headers=tenant.headers | IMAGE)
        assert answer.status == 200


async def test_body_goes_on_during_a_database_outage(
    api: Client, new_tenant: NewTenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was known last bounds it until PostgreSQL is back."""
    tenant = await new_tenant(max_bytes=MB)
    service = resources_of(api)
    account = await service.keys.find_account(tenant.key)
    with closing(service.admission._reservations.open(account, None)) as reservation:
        await reservation.cover(MB // 2)

        async def refuse(*_: object) -> None:
            raise ServiceError("database-unavailable")

        monkeypatch.setattr("service.uploads.receiving.load_account", refuse)
        monkeypatch.setattr("service.uploads.receiving.time.monotonic", lambda: 1e12)
        await reservation.cover(MB)
        with pytest.raises(ServiceError, match="database-unavailable"):
            await reservation.cover(MB + 1)


class TestSharedBytes:
    @pytest.fixture
    def processes(self) -> Callable[[int], InFlightBytes]:
        descriptor = in_flight_bytes.create(3)
        return lambda number: InFlightBytes(descriptor, number)

    def test_each_process_sees_what_the_others_hold(self, processes: Callable[[int], InFlightBytes]) -> None:
        first, second, third = (processes(number) for number in range(3))
        first.put(7, 100)
        second.put(7, 20)
        second.put(8, 3)
        assert [one.count_others(7) for one in (first, second, third)] == [20, 100, 120]
        first.put(7, 0)
        assert second.count_others(7) == 0
        assert third.count_others(8) == 3

    def test_replaced_process_holds_nothing(self, processes: Callable[[int], InFlightBytes]) -> None:
        first, second = processes(0), processes(1)
        first.put(7, 100)
        processes(0)
        assert second.count_others(7) == 0

    def test_slots_are_used_again_and_run_out(self, processes: Callable[[int], InFlightBytes]) -> None:
        first, second = processes(0), processes(1)
        for account_id in range(3 * SLOTS):
            first.put(account_id, 5)
            first.put(account_id, 0)
        for account_id in range(SLOTS + 1):
            first.put(account_id, 1)
        assert sum(second.count_others(account_id) for account_id in range(SLOTS + 1)) == SLOTS
        first.put(0, 0)
        first.put(SLOTS, 9)
        assert second.count_others(SLOTS) == 9

    def test_one_process_alone_has_no_others(self) -> None:
        alone = InFlightBytes.unshared()
        alone.put(7, 100)
        assert alone.count_others(7) == 0
