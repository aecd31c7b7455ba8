"""Helpers for tests of decoder processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from service.config.settings import Settings
from service.images.probe import Probe, Rejected
from worker.sandbox.pool import DecoderPool

# With the limits of an installation that sets none.
DEFAULTS = Settings.model_construct()


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


class Child:
    """One child of a worker, which probes bytes."""

    def __init__(self, pool: DecoderPool, path: Path) -> None:
        self.pool = pool
        self._path = path

    async def look(self, data: bytes) -> Probe:
        self._path.write_bytes(data)
        return await self.pool.probe(str(self._path))

    async def outcome(self, data: bytes) -> str:
        try:
            await self.look(data)
        except Rejected as refusal:
            return refusal.code
        return "accepted"

    @property
    def pid(self) -> int:
        pid = self.pool.decoders[0].process.pid
        assert pid is not None
        return pid
