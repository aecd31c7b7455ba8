"""Group commit: the backlog is written together, and no item's outcome depends on another's."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence

import pytest

from service.batcher import Batcher, WriteBehind, running
from service.errors import ServiceError
from tests.support.waiting import until


async def test_backlog_is_written_in_batches() -> None:
    batches: list[list[int]] = []

    async def write(items: Sequence[int]) -> list[int | Exception]:
        batches.append(list(items))
        await asyncio.sleep(0.01)
        return [item * 2 for item in items]

    batcher: Batcher[int, int] = Batcher(write, limit=4)
    async with running(batcher.run()):
        assert await asyncio.gather(*(batcher.submit(item) for item in range(10))) == [2 * n for n in range(10)]
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize(("wait_s", "expected"), [(0.3, [[1, 2]]), (0, [[1], [2]])])
async def test_batch_waits_for_more_items(wait_s: float, expected: list[list[int]]) -> None:
    batches: list[list[int]] = []

    async def write(items: Sequence[int]) -> list[int | Exception]:
        batches.append(list(items))
        return list(items)

    batcher: Batcher[int, int] = Batcher(write, wait_s=lambda: wait_s)
    async with running(batcher.run()):
        first = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0.001)
        await asyncio.gather(first, batcher.submit(2))
    assert batches == expected


async def test_item_that_fails_its_batch_fails_alone() -> None:
    async def write(items: Sequence[int]) -> list[int | Exception]:
        if 13 in items:
            raise ValueError("13")
        return list(items)

    batcher: Batcher[int, int] = Batcher(write)
    async with running(batcher.run()):
        outcomes = await asyncio.gather(*(batcher.submit(item) for item in (12, 13, 14)), return_exceptions=True)
    assert outcomes[0] == 12
    assert isinstance(outcomes[1], ValueError)
    assert outcomes[2] == 14


async def test_outage_is_raised_to_the_whole_batch() -> None:
    calls = 0

    async def write(_: Sequence[int]) -> list[int | Exception]:
        nonlocal calls
        calls += 1
        raise ServiceError("database-unavailable")

    batcher: Batcher[int, int] = Batcher(write)
    async with running(batcher.run()):
        outcomes = await asyncio.gather(*(batcher.submit(item) for item in range(5)), return_exceptions=True)
    assert {getattr(outcome, "code", None) for outcome in outcomes} == {"database-unavailable"}
    assert calls == 1


async def test_exception_is_raised_to_its_submitter() -> None:
    async def write(items: Sequence[int]) -> list[int | Exception]:
        return [item if item % 2 else KeyError(item) for item in items]

    batcher: Batcher[int, int] = Batcher(write)
    async with running(batcher.run()):
        outcomes = await asyncio.gather(*(batcher.submit(item) for item in (1, 2, 3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [int, KeyError, int]


async def test_stopped_batcher_cancels_submitters() -> None:
    async def write(_: Sequence[int]) -> list[int | Exception]:
        await asyncio.sleep(60)
        return []

    batcher: Batcher[int, int] = Batcher(write)
    async with running(batcher.run()):
        submitted = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0.05)
    with pytest.raises(asyncio.CancelledError):
        await submitted


async def test_task_that_dies_ends_the_process() -> None:
    async def die() -> None:
        raise RuntimeError

    terminated = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)
    async with asyncio.timeout(5), running(die()):
        await terminated.wait()
    asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)


async def test_slow_outage_is_raised_to_the_backlog() -> None:
    pause = 0.1
    calls = 0

    async def write(_: Sequence[int]) -> list[int | Exception]:
        nonlocal calls
        calls += 1
        await asyncio.sleep(pause)
        raise ServiceError("database-unavailable")

    batcher: Batcher[int, int] = Batcher(write, limit=2, slow_s=0.05)
    async with running(batcher.run()):
        outcomes = await asyncio.gather(*(batcher.submit(item) for item in range(7)), return_exceptions=True)
        assert {getattr(outcome, "code", None) for outcome in outcomes} == {"database-unavailable"}
        assert calls == 1
        pause = 0
        await asyncio.gather(*(batcher.submit(item) for item in range(7)), return_exceptions=True)
        assert calls == 5


async def test_ended_batcher_refuses_items() -> None:
    async def write(items: Sequence[int]) -> list[int | Exception]:
        return list(items)

    batcher: Batcher[int, int] = Batcher(write)
    async with running(batcher.run()):
        assert await batcher.submit(1) == 1
    with pytest.raises(asyncio.CancelledError):
        await batcher.submit(2)


async def test_backlog_beyond_its_maximum_is_dropped() -> None:
    async def write(items: Sequence[int]) -> list[int | Exception]:
        return list(items)

    batcher: Batcher[int, int] = Batcher(write, max_backlog=2)
    futures = [batcher.enqueue(item) for item in range(4)]
    async with running(batcher.run()):
        assert await asyncio.gather(*futures[2:]) == [2, 3]
    assert [future.cancelled() for future in futures] == [True, True, False, False]


class Table:
    """Rows that a WriteBehind writes; `fail` raises the errors of one write."""

    def __init__(self, **timings: float) -> None:
        self.rows: list[int] = []
        self.errors: list[Exception] = []
        self.outages = 0
        self.bad: set[int] = set()
        self.writer: WriteBehind[int] = WriteBehind(self._write, self.errors.append, **timings)  # type: ignore[arg-type]

    async def _write(self, items: Sequence[int]) -> None:
        if self.outages:
            self.outages -= 1
            raise ServiceError("database-unavailable")
        if self.bad.intersection(items):
            raise ValueError(items)
        self.rows += items


async def test_records_survive_an_outage() -> None:
    table = Table(gather_s=0.01, retry_s=0.01)
    table.outages = 3
    async with table.writer.running():
        for item in range(5):
            table.writer.add(item)
        await until(lambda: not table.writer.pending)
    assert table.rows == [0, 1, 2, 3, 4]
    assert [str(error) for error in table.errors] == [str(ServiceError("database-unavailable"))] * 3


async def test_record_that_fails_is_dropped_alone() -> None:
    table = Table(gather_s=0.01)
    table.bad = {2}
    async with table.writer.running():
        for item in range(5):
            table.writer.add(item)
        await until(lambda: not table.writer.pending)
    assert table.rows == [0, 1, 3, 4]
    assert [type(error) for error in table.errors] == [ValueError]


async def test_pending_records_are_written_at_the_end() -> None:
    table = Table(gather_s=60)
    async with table.writer.running():
        for item in range(1200):
            table.writer.add(item)
        await asyncio.sleep(0)
    assert table.rows == list(range(1200))


async def test_records_of_a_retried_batch_are_drained() -> None:
    table = Table(gather_s=0, retry_s=60)
    table.outages = 1
    async with table.writer.running():
        table.writer.add(1)
        await until(lambda: table.errors)
        table.writer.add(2)
    assert table.rows == [1, 2]


async def test_oldest_records_are_dropped_in_a_long_outage() -> None:
    table = Table(gather_s=60, max_backlog=3)
    async with table.writer.running():
        for item in range(5):
            table.writer.add(item)
        await until(lambda: table.writer.pending == 3)
    assert table.rows == [2, 3, 4]
