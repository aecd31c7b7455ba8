"""Group commit: what waits is written together, and no item's fate depends on another's."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence

import pytest

from service.batcher import Batcher, running
from service.errors import ServiceError


async def test_items_that_wait_are_written_together_up_to_the_limit() -> None:
    batches: list[list[int]] = []

    async def write(items: Sequence[int]) -> list[int | Exception]:
        batches.append(list(items))
        await asyncio.sleep(0.01)
        return [item * 2 for item in items]

    batcher: Batcher[int, int] = Batcher(write, limit=4)
    async with running(batcher.run()):
        assert await asyncio.gather(*(batcher.submit(item) for item in range(10))) == [2 * n for n in range(10)]
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize(("crowded", "expected"), [(True, [[1, 2]]), (False, [[1], [2]])])
async def test_a_batch_waits_a_little_for_items_that_are_about_to_come(
    monkeypatch: pytest.MonkeyPatch, crowded: bool, expected: list[list[int]]
) -> None:
    monkeypatch.setattr("service.batcher._GATHER_S", 0.3)
    batches: list[list[int]] = []

    async def write(items: Sequence[int]) -> list[int | Exception]:
        batches.append(list(items))
        return list(items)

    batcher: Batcher[int, int] = Batcher(write, crowded=lambda: crowded)
    async with running(batcher.run()):
        first = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0.001)
        await asyncio.gather(first, batcher.submit(2))
    assert batches == expected


async def test_an_item_that_spoils_its_batch_fails_alone() -> None:
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


async def test_a_dependency_that_is_away_is_told_to_all_and_asked_once() -> None:
    asked = 0

    async def write(_: Sequence[int]) -> list[int | Exception]:
        nonlocal asked
        asked += 1
        raise ServiceError("database-unavailable")

    batcher: Batcher[int, int] = Batcher(write)
    async with running(batcher.run()):
        outcomes = await asyncio.gather(*(batcher.submit(item) for item in range(5)), return_exceptions=True)
    assert {getattr(outcome, "code", None) for outcome in outcomes} == {"database-unavailable"}
    assert asked == 1


async def test_an_outcome_that_is_an_exception_is_raised_to_its_submitter() -> None:
    async def write(items: Sequence[int]) -> list[int | Exception]:
        return [item if item % 2 else KeyError(item) for item in items]

    batcher: Batcher[int, int] = Batcher(write)
    async with running(batcher.run()):
        outcomes = await asyncio.gather(*(batcher.submit(item) for item in (1, 2, 3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [int, KeyError, int]


async def test_submitters_of_a_batcher_that_is_stopped_are_not_left_waiting() -> None:
    async def write(_: Sequence[int]) -> list[int | Exception]:
        await asyncio.sleep(60)
        return []

    batcher: Batcher[int, int] = Batcher(write)
    async with running(batcher.run()):
        submitted = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0.05)
    with pytest.raises(asyncio.CancelledError):
        await submitted


async def test_a_task_that_dies_ends_the_process() -> None:
    async def die() -> None:
        raise RuntimeError

    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    async with asyncio.timeout(5), running(die()):
        await told.wait()
    asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)


async def test_who_waits_behind_a_dependency_that_hangs_is_told_with_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.batcher._LONG_S", 0.05)
    pause = 0.1
    asked = 0

    async def write(_: Sequence[int]) -> list[int | Exception]:
        nonlocal asked
        asked += 1
        await asyncio.sleep(pause)
        raise ServiceError("database-unavailable")

    batcher: Batcher[int, int] = Batcher(write, limit=2)
    async with running(batcher.run()):
        outcomes = await asyncio.gather(*(batcher.submit(item) for item in range(7)), return_exceptions=True)
        assert {getattr(outcome, "code", None) for outcome in outcomes} == {"database-unavailable"}
        assert asked == 1
        pause = 0
        await asyncio.gather(*(batcher.submit(item) for item in range(7)), return_exceptions=True)
        assert asked == 5


async def test_nobody_waits_for_a_batcher_that_has_ended() -> None:
    async def write(items: Sequence[int]) -> list[int | Exception]:
        return list(items)

    batcher: Batcher[int, int] = Batcher(write)
    async with running(batcher.run()):
        assert await batcher.submit(1) == 1
    with pytest.raises(asyncio.CancelledError):
        await batcher.submit(2)
