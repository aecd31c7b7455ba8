"""Pools of decoders and single ones, which are closed however a test ends, and pictures for them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.support.decoders import DEFAULTS, Child
from tests.support.samples import jpeg, slow_svg
from worker.sandbox.pool import DecoderPool

NewPool: TypeAlias = Callable[..., DecoderPool]


@pytest.fixture
async def new_pool() -> AsyncIterator[NewPool]:
    """Makes pools. Their processes start with `start`, or with the first picture."""
    async with AsyncExitStack() as stack:

        def make(count: int = 1, **options: Any) -> DecoderPool:
            pool = DecoderPool(count, **{"max_pixels": 1_000_000, "timeout_s": 5, **options})
            stack.push_async_callback(pool.close)
            return pool

        yield make


@pytest.fixture
async def pool(new_pool: NewPool) -> DecoderPool:
    pool = new_pool()
    await pool.start()
    return pool


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "picture"
    path.write_bytes(jpeg(120, 80))
    return str(path)


@pytest.fixture
def endless(tmp_path: Path) -> str:
    """A picture that takes longer than any time limit here."""
    path = tmp_path / "endless"
    path.write_bytes(slow_svg(1000))
    return str(path)


@pytest.fixture
async def child(tmp_path: Path) -> AsyncIterator[Child]:
    """A decoder with the default limits. The test fails if it dies."""
    pool = DecoderPool(1, max_pixels=DEFAULTS.max_pixels, timeout_s=DEFAULTS.probe_timeout_s)
    await pool.start()
    worker = Child(pool, tmp_path / "picture")
    pid = worker.pid
    yield worker
    lost = worker.pid != pid
    await pool.close()
    assert not lost, "a child died"
