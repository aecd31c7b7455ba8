"""Short calls run on the event loop while a local disk answers soon, and otherwise in threads."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest

from service.storage.files import LoopCalls, ShortCalls


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as threads:
        yield threads


async def runs_on_loop(calls: ShortCalls) -> bool:
    return await calls.run(threading.current_thread) is threading.current_thread()


async def test_local_disk_needs_no_thread(threads: ThreadPoolExecutor) -> None:
    assert await runs_on_loop(ShortCalls(threads, LoopCalls(is_local=True)))


async def test_remote_disk_needs_threads(threads: ThreadPoolExecutor) -> None:
    assert not await runs_on_loop(ShortCalls(threads, LoopCalls(is_local=False)))


@pytest.mark.parametrize("error", [None, OSError("a fault of the disk")])
async def test_slow_call_sends_the_next_ones_to_threads(threads: ThreadPoolExecutor, error: OSError | None) -> None:
    calls = ShortCalls(threads, LoopCalls(is_local=True, max_s=0.02, slow_for_s=0.2))

    def take_long() -> None:
        time.sleep(0.03)
        if error is not None:
            raise error

    with pytest.raises(OSError, match="a fault of the disk") if error else nullcontext():
        await calls.run(take_long)
    assert not await runs_on_loop(calls)
    await asyncio.sleep(0.2)
    assert await runs_on_loop(calls)
