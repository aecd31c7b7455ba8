"""Helpers for tests of decoder processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from service.config.settings import Settings
from service.images.probe import Probe, Rejected
from worker.file_headers import PictureFile
from worker.sandbox.decoder import PendingRequest
from worker.sandbox.messages import ProbeRequest, Result
from worker.sandbox.pool import MAX_PREFETCH, DecoderPool

# With the limits of an installation that sets none.
DEFAULTS = Settings.model_construct()


def pid_of(pool: DecoderPool, number: int = 0) -> int:
    pid = pool.decoders[number].process.pid
    assert pid is not None
    return pid


def warm_up(pool: DecoderPool) -> None:
    """After quick pictures a decoder gets several at a time."""
    while pool.prefetch < MAX_PREFETCH:
        pool.record_duration(0.001)


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


async def probe_group(pool: DecoderPool, *paths: str) -> list[Result | BaseException]:
    """Probes pictures as one group, in the first decoder. Returns their outcomes."""
    loop = asyncio.get_running_loop()
    with ExitStack() as stack:
        files = [stack.enter_context(PictureFile(path)) for path in paths]
        group = [PendingRequest(ProbeRequest(1_000_000), [file], loop.create_future()) for file in files]
        for pending in group:
            pool.decoders[0].submit(pending)
        return await asyncio.gather(*(pending.result for pending in group), return_exceptions=True)


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
