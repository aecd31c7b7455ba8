"""Groups of requests: one message for several pictures of one account. Only a picture that fails alone is blamed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from service.images.probe import Probe
from service.renditions.transformation import Transformation
from tests.integration.sandbox.conftest import NewPool
from tests.support.crashing_decoder import CRASH, EXIT_CODE
from tests.support.decoders import pid_of, probe_group, warm_up
from tests.support.samples import jpeg
from worker.file_headers import PictureFile
from worker.sandbox.decoder import DecoderFailed, DecoderLimits, PendingRequest
from worker.sandbox.messages import ProbeRequest, Request, Result
from worker.sandbox.pool import DecoderPool
from worker.sandbox.process import DecoderProcess

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The names of the pictures in each message to a decoder."""
    messages: list[list[str]] = []
    send = DecoderProcess.send

    def record(self: DecoderProcess, group: Sequence[tuple[Request, Sequence[PictureFile]]]) -> None:
        messages.append([Path(str(files[0].name)).name for _, files in group])
        send(self, group)

    monkeypatch.setattr(DecoderProcess, "send", record)
    return messages


@pytest.fixture
def crashing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A picture that crashes the decoders of the test."""
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nshift 3\nexec "{sys.executable}" -m tests.support.crashing_decoder "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    path = tmp_path / "crashing"
    path.write_bytes(CRASH)
    return str(path)


def write_pictures(folder: Path, *widths: int) -> list[str]:
    for width in widths:
        (folder / str(width)).write_bytes(jpeg(width, 40))
    return [str(folder / str(width)) for width in widths]


def widths_of(outcomes: Sequence[Result | BaseException]) -> list[int | type]:
    return [outcome.width if isinstance(outcome, Probe) else type(outcome) for outcome in outcomes]


async def test_group_is_one_message_answered_in_order(
    pool: DecoderPool, tmp_path: Path, messages: list[list[str]]
) -> None:
    pictures = write_pictures(tmp_path, 50, 60, 70, 80)
    assert widths_of(await probe_group(pool, *pictures)) == [50, 60, 70, 80]
    assert messages == [["50", "60"], ["70", "80"]]


async def test_lone_picture_is_sent_immediately(pool: DecoderPool, tmp_path: Path, messages: list[list[str]]) -> None:
    """Even behind a group: the decoder would wait for it otherwise."""
    pictures = write_pictures(tmp_path, 50, 60, 70)
    os.kill(pid_of(pool), signal.SIGSTOP)
    group = asyncio.create_task(probe_group(pool, *pictures[:2]))
    while not messages:
        await asyncio.sleep(0)
    lone = asyncio.create_task(probe_group(pool, pictures[2]))
    for _ in range(3):  # turns of the event loop: no timer runs out
        await asyncio.sleep(0)
    assert messages == [["50", "60"], ["70"]]
    os.kill(pid_of(pool), signal.SIGCONT)
    assert widths_of([*await group, *await lone]) == [50, 60, 70]


async def test_picture_that_crashes_its_group_is_blamed_alone(
    new_pool: NewPool, crashing: str, tmp_path: Path, messages: list[list[str]]
) -> None:
    pool = new_pool(timeout_s=30)
    await pool.start()
    first, second = write_pictures(tmp_path, 50, 60)
    with capture_logs() as logs:
        assert widths_of(await probe_group(pool, first, crashing, second)) == [50, DecoderFailed, 60]
    assert [(line["event"], line["exit_code"]) for line in logs] == [
        ("decoder.group_failed", EXIT_CODE),
        ("decoder.failed", EXIT_CODE),
    ]
    # A slow machine sends the first response before the crash, so that picture is not sent again.
    again = [message for message in messages[2:] if message != ["50"]]
    assert (messages[:2], again) == ([["50", "crashing"], ["60"]], [["crashing"], ["60"], ["60"]])


async def test_group_that_fails_names_no_picture(new_pool: NewPool, crashing: str) -> None:
    with structlog.contextvars.bound_contextvars(part="worker"):
        pool = new_pool(timeout_s=30)
    await pool.start()
    with (
        capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs,
        structlog.contextvars.bound_contextvars(image_id="of the caller"),
    ):
        await probe_group(pool, crashing, crashing)
    assert logs[0]["part"] == "worker"  # as in every line of the process
    assert [(line["event"], line.get("image_id")) for line in logs] == [
        ("decoder.group_failed", None),
        ("decoder.failed", "of the caller"),
        ("decoder.failed", "of the caller"),
    ]


async def test_picture_that_hangs_in_a_group_is_blamed_alone(new_pool: NewPool, endless: str, tmp_path: Path) -> None:
    pool = new_pool(timeout_s=1, limits=DecoderLimits(io_stall_cpu_share=0))
    await pool.start()
    first, second = write_pictures(tmp_path, 50, 60)
    assert widths_of(await probe_group(pool, first, endless, second)) == [50, DecoderFailed, 60]


async def test_group_that_times_out_is_split(new_pool: NewPool, tmp_path: Path) -> None:
    """It has the time limit of one picture. No picture is blamed if the disk hung or all of them together were slow."""
    pool = new_pool(timeout_s=1)
    await pool.start()
    pid = pid_of(pool)
    pictures = write_pictures(tmp_path, 50, 60)
    os.kill(pid, signal.SIGSTOP)
    with capture_logs() as logs:
        assert widths_of(await probe_group(pool, *pictures)) == [50, 60]
    assert [line["event"] for line in logs] == ["decoder.group_failed"]
    assert pid_of(pool) != pid


async def test_no_group_mixes_accounts(new_pool: NewPool, tmp_path: Path, messages: list[list[str]]) -> None:
    """A hostile picture could write the responses of all pictures of its group."""
    pool = new_pool(2)
    await pool.start()
    warm_up(pool)
    accounts = ["1", "2", "3"]
    pictures = {account: tmp_path / account for account in accounts}
    for path in pictures.values():
        path.write_bytes(jpeg(50, 40))
    requests = [pool.probe(str(pictures[account]), account=account) for account in accounts * 40]
    await asyncio.gather(*requests)
    assert all(len(set(message)) == 1 for message in messages)
    assert max(map(len, messages)) > 1


async def test_renditions_and_locations_are_sent_alone(
    pool: DecoderPool, picture: str, messages: list[list[str]]
) -> None:
    warm_up(pool)
    await asyncio.gather(
        *(pool.render([picture], Transformation("png", 100, width=10)) for _ in range(4)),
        *(pool.find_locations([picture]) for _ in range(4)),
    )
    assert [len(message) for message in messages] == [1] * 8


async def test_pictures_of_a_slow_account_are_sent_alone(
    pool: DecoderPool, picture: str, messages: list[list[str]]
) -> None:
    pool.record_duration(60, "slow")
    warm_up(pool)
    await asyncio.gather(*(pool.probe(picture, account="slow") for _ in range(20)))
    assert [len(message) for message in messages] == [1] * 20


async def test_picture_that_is_cancelled_before_it_is_sent(
    pool: DecoderPool, tmp_path: Path, messages: list[list[str]]
) -> None:
    """Also behind a picture that the decoder works on, where nothing is sent until the next turn of the event loop."""
    first, cancelled, last = write_pictures(tmp_path, 50, 60, 70)
    os.kill(pid_of(pool), signal.SIGSTOP)
    working = asyncio.create_task(probe_group(pool, first))
    while not messages:
        await asyncio.sleep(0)
    with PictureFile(cancelled) as file:
        pending = PendingRequest(ProbeRequest(1_000_000), [file], asyncio.get_running_loop().create_future())
        pool.decoders[0].submit(pending)
        pending.result.cancel()
    outcomes = asyncio.create_task(probe_group(pool, last))
    os.kill(pid_of(pool), signal.SIGCONT)
    assert widths_of([*await working, *await outcomes]) == [50, 70]
    assert messages == [["50"], ["70"]]


async def test_cancelled_picture_of_a_failed_group_is_not_sent_again(
    new_pool: NewPool, crashing: str, picture: str, messages: list[list[str]]
) -> None:
    """Its file is closed, and the descriptor's number may belong to another file."""
    pool = new_pool(timeout_s=30)
    loop = asyncio.get_running_loop()
    with PictureFile(picture) as good, PictureFile(crashing) as bad:
        group = [PendingRequest(ProbeRequest(1_000_000), [file], loop.create_future()) for file in (bad, good)]
        for pending in group:
            pool.decoders[0].submit(pending)
        while not messages:
            await asyncio.sleep(0.001)
        group[1].result.cancel()
        with pytest.raises(DecoderFailed):
            await group[0].result
        await probe_group(pool, picture)
    assert messages == [["crashing", "picture"], ["crashing"], ["picture"]]
