"""Slots of uploads and downloads are shared by account, and a slow body holds one for a bounded time."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from service.api.app import create_app
from service.config.settings import Settings
from service.errors import ServiceError
from service.ids import AccountId
from service.limits import slots as pace
from service.limits.slots import MIN_BYTES_PER_S, SLOW_AFTER_S, Pace, PreemptibleSlot, PreemptibleSlots
from service.storage.local.originals import LocalUploadFile
from service.telemetry.metrics import metrics
from service.uploads import receiving
from tests.conftest import Client, NewTenant, Tenant, resources_of
from tests.support.api import error_of
from tests.support.daguerre_processes import processes_of
from tests.support.samples import jpeg, stored_files
from tests.support.waiting import until

IMAGE = {"Content-Type": "image/jpeg"}
QUIET, LOUD, THIRD = AccountId(1), AccountId(2), AccountId(3)


class Bodies:
    """Idle bodies that hold slots until they are ended or preempted."""

    def __init__(self, count: int, slow_after_s: float = SLOW_AFTER_S) -> None:
        self.slots = PreemptibleSlots(count, metrics.uploads_in_flight, slow_after_s=slow_after_s)
        self._taken: list[PreemptibleSlot] = []
        self._tasks: list[asyncio.Task[str]] = []

    async def begin(self, account_id: AccountId, *, size: int = 0) -> asyncio.Task[str]:
        """Begins a body of which `size` bytes have arrived. Raises `busy`; the task returns its error code."""
        body_pace = Pace()
        body_pace.start_wait()
        body_pace.end_wait(size)
        body_pace.start_wait()
        slot = self.slots.acquire(account_id, body_pace)
        self._taken.append(slot)
        task = asyncio.create_task(self._arrive(slot))
        self._tasks.append(task)
        await asyncio.sleep(0)
        return task

    async def _arrive(self, slot: PreemptibleSlot) -> str:
        try:
            with slot:
                await asyncio.Event().wait()
        except ServiceError as error:
            return error.code
        return ""

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for slot in self._taken:
            self.slots.release(slot)


@pytest.fixture
async def bodies() -> AsyncIterator[Callable[[int], Bodies]]:
    made: list[Bodies] = []

    def make(count: int, **timing: float) -> Bodies:
        made.append(Bodies(count, **timing))
        return made[-1]

    before = metrics.uploads_in_flight._value.get()
    yield make
    for one in made:
        await one.end()
    assert metrics.uploads_in_flight._value.get() == before


async def test_account_gets_three_quarters(bodies: Callable[[int], Bodies]) -> None:
    some = bodies(8)
    for _ in range(6):
        await some.begin(LOUD)
    with pytest.raises(ServiceError, match="busy"):
        await some.begin(LOUD)
    for _ in range(2):
        await some.begin(QUIET)


@pytest.mark.parametrize("count", [1, 2, 3])
async def test_one_account_gets_all_of_few_slots(bodies: Callable[[int], Bodies], count: int) -> None:
    some = bodies(count)
    for _ in range(count):
        await some.begin(LOUD)
    with pytest.raises(ServiceError, match="busy"):
        await some.begin(LOUD)


async def test_slowest_body_of_the_largest_account_yields(bodies: Callable[[int], Bodies]) -> None:
    some = bodies(8)
    loud = [await some.begin(LOUD, size=1000 * number) for number in (3, 1, 2, 4, 5)]
    third = [await some.begin(THIRD) for _ in range(3)]
    await some.begin(QUIET)
    assert await loud[1] == "busy"
    await some.begin(QUIET)
    assert await loud[2] == "busy"
    with pytest.raises(ServiceError, match="busy"):  # 3, 3 and 2: nobody holds two more
        await some.begin(QUIET)
    assert not any(task.done() for task in (loud[0], *loud[3:], *third))


async def test_any_account_gets_a_slot_beside_many(bodies: Callable[[int], Bodies]) -> None:
    """Enough accounts to fill all slots, each with as many bodies as it may have."""
    some = bodies(256)
    for number in range(10, 20):
        for _ in range(100):
            try:
                await some.begin(AccountId(number))
            except ServiceError:
                break
    for _ in range(20):
        await some.begin(QUIET)


async def test_received_bodies_keep_their_slots(bodies: Callable[[int], Bodies]) -> None:
    some = bodies(4)
    arrived = [some.slots.acquire(account_id, Pace()) for account_id in (LOUD, LOUD, LOUD, THIRD)]
    with pytest.raises(ServiceError, match="busy"):
        await some.begin(QUIET)
    some.slots.release(arrived[0])
    await some.begin(QUIET)
    for slot in arrived[1:]:
        some.slots.release(slot)


async def test_slow_body_yields_to_its_own_account(bodies: Callable[..., Bodies]) -> None:
    some = bodies(2, slow_after_s=0.05)
    slow, fast = await some.begin(LOUD, size=10), await some.begin(LOUD, size=1_000_000)
    await asyncio.sleep(0.1)
    await some.begin(LOUD)
    assert await slow == "busy"
    assert not fast.done()
    with pytest.raises(ServiceError, match="busy"):
        await some.begin(LOUD)


@pytest.mark.usefixtures("worker")
@pytest.mark.settings(uploads_in_flight=8)
async def test_idle_bodies_of_one_key_stop_no_other(
    api: Client, tenant: Tenant, new_tenant: NewTenant, settings: Settings
) -> None:
    async with AsyncExitStack() as stack:
        for key in [tenant.key, (await new_tenant()).key]:  # the second has the last two, and all are taken
            for _ in range(12):
                await begin_upload(stack, api.port or 0, key)
            await asyncio.sleep(0.1)
        await until(lambda: len(resources_of(api).admission._uploads.by_account) == 2)
        quiet = await new_tenant()
        answer = await api.post("/v1/images", data=jpeg(), headers=quiet.headers | IMAGE)
        assert answer.status == 200
    assert len(stored_files(settings)) == 1


async def begin_upload(stack: AsyncExitStack, port: int, key: str) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)

    async def end() -> None:
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()

    stack.push_async_callback(end)
    head = f"POST /v1/images HTTP/1.1\r\nHost: x\r\nX-Api-Key: {key}\r\nContent-Type: image/jpeg\r\n"
    writer.write(f"{head}Content-Length: 1000\r\n\r\nsome".encode())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.settings(upload_idle_timeout_s=60)
async def test_530_idle_bodies_leave_room_for_others(
    settings: Settings, tenant: Tenant, new_tenant: NewTenant, tmp_path: Path
) -> None:
    """All that two processes have, as they are run."""
    quiet = await new_tenant()
    async with processes_of(settings, quiet.key, tmp_path / "logs") as daguerre, AsyncExitStack() as stack:
        serve = daguerre.start_serve(2)
        worker = daguerre.start_worker()
        await serve.wait_logged("api.listening", 2)
        await worker.wait_logged("worker.started")
        await daguerre.wait_ready()
        for _ in range(530):
            await begin_upload(stack, daguerre.port, tenant.key)
        await until(lambda: serve.count_requests(status=503) >= 530 - 2 * 192)
        answers = await asyncio.gather(*(daguerre.upload(jpeg(64, 48 + number)) for number in range(40)))
        assert [answer.status for answer in answers] == [200] * 40


async def trickle() -> AsyncIterator[bytes]:
    for _ in range(200):
        yield b"x"
        await asyncio.sleep(0.02)


@pytest.mark.settings(upload_idle_timeout_s=0.3)
async def test_upload_has_a_minimum_pace(
    aiohttp_client: Any, settings: Settings, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiving, "GRACE_S", 0.5)
    api = await aiohttp_client(create_app(settings))
    loop = asyncio.get_running_loop()
    began = loop.time()
    answer = await api.post("/v1/images", data=trickle(), headers=tenant.headers | IMAGE)
    assert (await error_of(answer))[:2] == (408, "upload-timeout")
    assert 0.4 < loop.time() - began < 2
    assert stored_files(settings) == []


@pytest.mark.slow
@pytest.mark.usefixtures("worker")
@pytest.mark.settings(upload_idle_timeout_s=1)
async def test_upload_above_the_minimum_pace_arrives(
    aiohttp_client: Any, settings: Settings, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes longer than the time in which it may be slower."""
    monkeypatch.setattr(receiving, "GRACE_S", 0.5)
    api = await aiohttp_client(create_app(settings))
    picture = jpeg(200, 150)
    piece = len(picture) // 20

    async def slowly() -> AsyncIterator[bytes]:
        for start in range(0, len(picture), piece):
            yield picture[start : start + piece]
            await asyncio.sleep(0.1)

    answer = await api.post("/v1/images", data=slowly(), headers=tenant.headers | IMAGE)
    assert answer.status == 200, await answer.text()
    assert len(picture) > 10 * MIN_BYTES_PER_S


async def test_slow_disk_is_no_upload_timeout(api: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "MIN_BYTES_PER_S", 1_000_000)
    service = resources_of(api)
    write = LocalUploadFile.write

    async def write_slowly(self: Any, chunks: Any) -> None:
        await asyncio.sleep(0.2)
        await write(self, chunks)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield bytes(300_000)

    monkeypatch.setattr(LocalUploadFile, "write", write_slowly)
    monkeypatch.setattr(receiving, "Pace", lambda: Pace(0.1))
    upload = await receiving.receive(chunks(), service.storage, service.upload_limits)
    assert upload.size == 900_000
    await service.storage.discard(upload.file)
