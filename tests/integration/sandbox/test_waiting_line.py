"""Which picture gets a child next: accounts take turns, and slow pictures leave a child to quick ones."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from service.renditions.transformation import Transformation
from tests.support.samples import jpeg, slow_svg
from tests.support.waiting import until
from worker.sandbox.decoder import ChildLost
from worker.sandbox.pool import Children
from worker.sandbox.process import ChildUnavailable

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="priorities are of /proc")

# A slow picture takes this long, and a quick one less, also on a machine that does other work.
TIMEOUT_S = 4


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "picture"
    path.write_bytes(jpeg(120, 80))
    return str(path)


@pytest.fixture
def endless(tmp_path: Path) -> str:
    path = tmp_path / "endless"
    path.write_bytes(slow_svg(1000))
    return str(path)


@asynccontextmanager
async def open_children(count: int, share: int | None = None) -> AsyncIterator[Children]:
    children = Children(count, max_pixels=1_000_000, timeout_s=TIMEOUT_S, share=share)
    await children.start()
    try:
        yield children
    finally:
        await children.end()


async def probe_slow(children: Children, path: str, account: str) -> None:
    with suppress(ChildLost, ChildUnavailable):  # the latter where it got next to no time of a core
        await children.probe(path, account=account)


def start_slow(children: Children, path: str, *accounts: str) -> list[asyncio.Task[None]]:
    return [asyncio.create_task(probe_slow(children, path, account)) for account in accounts]


def count_done(tasks: list[asyncio.Task[None]]) -> int:
    return sum(task.done() for task in tasks)


async def test_accounts_take_turns_at_a_child(picture: str, endless: str) -> None:
    async with open_children(1) as children:
        slow = start_slow(children, endless, "1", "1", "1", "1")
        await asyncio.sleep(0.1)
        await children.probe(picture, account="2")
        assert count_done(slow) == 2


async def test_one_account_leaves_a_child_to_others(picture: str, endless: str) -> None:
    async with open_children(3, share=2) as children:
        slow = start_slow(children, endless, *["1"] * 6)
        await asyncio.sleep(0.1)
        assert children.unanswered == 2
        await children.probe(picture, account="2")
        assert count_done(slow) == 0
        await slow[0]
        await until(lambda: children.unanswered == 2)


async def test_no_picture_is_put_behind_anothers(picture: str, endless: str) -> None:
    """Also not while pictures are quick, and a child is given several ahead."""
    async with open_children(2) as children:
        for _ in range(60):
            children._note(0.001)
        assert children.ahead > 1
        slow = start_slow(children, endless, "1")
        await asyncio.sleep(0.1)
        await asyncio.gather(*(children.probe(picture, account="2") for _ in range(10)))
        assert count_done(slow) == 0


async def test_slow_accounts_together_leave_a_child(
    picture: str, endless: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.sandbox.waiting_line._SLOW_S", 0.5)
    async with open_children(2, share=1) as children:
        slow = start_slow(children, endless, "1", "2", "1", "2")
        await asyncio.gather(*slow[:2])  # of the second account nothing was known
        assert set(children.slow_accounts()) == {"1", "2"}
        await children.probe(picture, account="3")
        assert count_done(slow) == 2


async def test_an_account_is_slow_for_a_while_only(picture: str, endless: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.sandbox.waiting_line._SLOW_FOR_S", 0.5)
    async with open_children(1) as children:
        await probe_slow(children, endless, "1")
        assert set(children.slow_accounts()) == {"1"}
        await asyncio.sleep(0.6)
        await children.probe(picture, account="1")
        assert set(children.slow_accounts()) == set()


async def test_slow_pictures_have_a_low_priority(tmp_path: Path, picture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.sandbox.waiting_line._SLOW_S", 0.1)
    monkeypatch.setattr("worker.sandbox.process._KEEP_LOWERED_S", 0.5)
    slow = tmp_path / "slow"
    slow.write_bytes(slow_svg(6))

    def niceness(pid: int | None) -> set[int]:
        assert pid is not None
        return {os.getpriority(os.PRIO_PROCESS, int(thread.name)) for thread in Path(f"/proc/{pid}/task").iterdir()}

    async with open_children(1) as children:
        process = children._all[0].process
        first, usual = process.pid, niceness(process.pid)
        await probe_slow(children, str(slow), "1")
        [again] = start_slow(children, str(slow), "1")
        # As a worker does whenever it looks for jobs.
        await until(lambda: bool(children.slow_accounts()) and (process.is_lowered or again.done()))
        assert process.is_lowered
        assert min(niceness(process.pid)) == max(usual) + 5
        await again
        await until(lambda: process.pid not in (None, first))  # it is replaced
        await children.probe(picture, account="2")
        assert niceness(process.pid) == usual


async def test_slow_account_keeps_its_child(tmp_path: Path, picture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One slow picture costs those after it no start of a process each."""
    monkeypatch.setattr("worker.sandbox.waiting_line._SLOW_S", 0.1)
    slow = tmp_path / "slow"
    slow.write_bytes(slow_svg(6))
    async with open_children(2, share=1) as children:
        await probe_slow(children, str(slow), "1")
        pids = set()
        for _ in range(10):
            await children.probe(picture, account="1")
            await asyncio.sleep(0.05)
            pids.add(tuple(child.process.pid for child in children._all))
        assert len(pids) == 1


async def test_a_withdrawn_picture_takes_no_child(picture: str, endless: str) -> None:
    async with open_children(1) as children:
        [slow] = start_slow(children, endless, "1")
        await asyncio.sleep(0.1)
        withdrawn, other = start_slow(children, endless, "2", "2")
        await asyncio.sleep(0.1)
        withdrawn.cancel()
        other.cancel()
        await slow
        async with asyncio.timeout(TIMEOUT_S):
            await children.probe(picture, account="3")


async def test_renditions_have_an_account_too(picture: str, endless: str) -> None:
    async with open_children(2, share=1) as children:
        slow = start_slow(children, endless, "1", "1")
        await asyncio.sleep(0.1)
        await children.render([picture], Transformation("png", 100, width=10), account="2")
        await children.find_locations([picture], account="2")
        assert count_done(slow) == 0
