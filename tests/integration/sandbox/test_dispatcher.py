"""Which request is next, and who decodes it: round robin by account, and a decoder is left for quick pictures."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from service.renditions.transformation import Transformation
from tests.integration.sandbox.conftest import NewPool
from tests.support.decoders import until
from tests.support.samples import slow_svg
from worker.sandbox.decoder import DecoderFailed, DecoderLimits
from worker.sandbox.pool import DecoderPool, SlowAccounts
from worker.sandbox.process import DecoderUnavailable

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="priorities are of /proc")]

# A slow picture takes this long, and a quick one less, also on a machine that does other work.
TIMEOUT_S = 4


async def started(pool: DecoderPool) -> DecoderPool:
    await pool.start()
    return pool


async def probe_slow(pool: DecoderPool, path: str, account: str) -> None:
    with suppress(DecoderFailed, DecoderUnavailable):  # the latter where it got next to no time of a core
        await pool.probe(path, account=account)


def start_slow(pool: DecoderPool, path: str, *accounts: str) -> list[asyncio.Task[None]]:
    return [asyncio.create_task(probe_slow(pool, path, account)) for account in accounts]


def count_done(tasks: list[asyncio.Task[None]]) -> int:
    return sum(task.done() for task in tasks)


async def test_accounts_take_turns(new_pool: NewPool, picture: str, endless: str) -> None:
    pool = await started(new_pool(1, timeout_s=TIMEOUT_S))
    slow = start_slow(pool, endless, "1", "1", "1", "1")
    await until(lambda: pool.in_flight == 1)
    await pool.probe(picture, account="2")
    assert count_done(slow) == 2


async def test_account_gets_at_most_its_share(new_pool: NewPool, picture: str, endless: str) -> None:
    pool = await started(new_pool(3, share=2, timeout_s=TIMEOUT_S))
    slow = start_slow(pool, endless, *["1"] * 6)
    await until(lambda: pool.in_flight > 1)
    await pool.probe(picture, account="2")
    assert pool.in_flight == 2
    assert count_done(slow) == 0
    await slow[0]
    await until(lambda: pool.in_flight == 2)


async def test_no_request_waits_behind_anothers(new_pool: NewPool, picture: str, endless: str) -> None:
    """Not even while pictures are quick, and decoders prefetch several."""
    pool = await started(new_pool(2, timeout_s=TIMEOUT_S))
    for _ in range(60):
        pool.record_duration(0.001)
    assert pool.prefetch > 1
    slow = start_slow(pool, endless, "1")
    await until(lambda: pool.in_flight == 1)
    await asyncio.gather(*(pool.probe(picture, account="2") for _ in range(10)))
    assert count_done(slow) == 0


async def test_slow_accounts_share_one_share(new_pool: NewPool, picture: str, endless: str) -> None:
    pool = await started(new_pool(2, share=1, timeout_s=TIMEOUT_S, slow=SlowAccounts(slow_s=0.5)))
    slow = start_slow(pool, endless, "1", "2", "1", "2")
    await asyncio.gather(*slow[:2])  # nothing was known of the second account yet
    assert set(pool.slow_accounts()) == {"1", "2"}
    await pool.probe(picture, account="3")
    assert count_done(slow) == 2


async def test_slow_pictures_have_a_low_priority(new_pool: NewPool, tmp_path: Path, picture: str) -> None:
    slow = tmp_path / "slow"
    slow.write_bytes(slow_svg(6))
    limits = DecoderLimits(low_priority_s=0.5)
    pool = await started(new_pool(1, timeout_s=30, slow=SlowAccounts(slow_s=0.05), limits=limits))

    def niceness(pid: int | None) -> set[int]:
        assert pid is not None
        return {os.getpriority(os.PRIO_PROCESS, int(thread.name)) for thread in Path(f"/proc/{pid}/task").iterdir()}

    process = pool.decoders[0].process
    first, usual = process.pid, niceness(process.pid)
    await probe_slow(pool, str(slow), "1")
    [second] = start_slow(pool, str(slow), "1")
    # As a worker does whenever it claims jobs.
    await until(lambda: bool(pool.slow_accounts()) and (process.has_low_priority or second.done()))
    assert process.has_low_priority
    assert min(niceness(process.pid)) == max(usual) + 5
    await second
    await until(lambda: process.pid not in (None, first))  # it is replaced
    await pool.probe(picture, account="2")
    assert niceness(process.pid) == usual


async def test_slow_account_keeps_its_process(new_pool: NewPool, tmp_path: Path, picture: str) -> None:
    """After a slow picture, each of the next ones would otherwise need the start of a process."""
    slow = tmp_path / "slow"
    slow.write_bytes(slow_svg(6))
    limits = DecoderLimits(low_priority_s=60)
    pool = await started(new_pool(2, share=1, timeout_s=30, slow=SlowAccounts(slow_s=0.05), limits=limits))
    await probe_slow(pool, str(slow), "1")
    pids = set()
    for _ in range(10):
        await pool.probe(picture, account="1")
        await asyncio.sleep(0.05)
        pids.add(tuple(decoder.process.pid for decoder in pool.decoders))
    assert len(pids) == 1


async def test_cancelled_requests_take_no_decoder(new_pool: NewPool, picture: str, endless: str) -> None:
    pool = await started(new_pool(1, timeout_s=TIMEOUT_S))
    [slow] = start_slow(pool, endless, "1")
    await until(lambda: pool.in_flight == 1)
    cancelled, other = start_slow(pool, endless, "2", "2")
    await asyncio.sleep(0.1)
    cancelled.cancel()
    other.cancel()
    await slow
    async with asyncio.timeout(TIMEOUT_S):
        await pool.probe(picture, account="3")


async def test_renditions_count_for_an_account(new_pool: NewPool, picture: str, endless: str) -> None:
    pool = await started(new_pool(2, share=1, timeout_s=TIMEOUT_S))
    slow = start_slow(pool, endless, "1", "1")
    await until(lambda: pool.in_flight == 1)
    await pool.render([picture], Transformation("png", 100, width=10), account="2")
    await pool.find_locations([picture], account="2")
    assert count_done(slow) == 0
