"""Helpers for tests of decoder processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from worker.sandbox.pool import DecoderPool


def pid_of(pool: DecoderPool, number: int = 0) -> int:
    pid = pool.decoders[number].process.pid
    assert pid is not None
    return pid


async def until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)


async def start_request(pool: DecoderPool, path: str, account: str = "") -> asyncio.Task[object]:
    """Starts a probe. Returns when a decoder works on it or it waits in the queue."""
    before = pool.in_flight
    task: asyncio.Task[object] = asyncio.create_task(pool.probe(path, account=account))
    await until(lambda: task.done() or pool.in_flight > before)
    return task
