"""The child processes that decode: each picture has its limits, and no picture takes more than its child along."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from io import FileIO
from pathlib import Path

import pytest
import structlog
import uvloop
from structlog.testing import capture_logs

from service.images.probe import Rejected
from tests.support.processes import is_alive
from tests.support.samples import jpeg, slow_svg
from worker.sandbox import child_main
from worker.sandbox.decoder import ChildLost
from worker.sandbox.messages import LENGTH, Answer, ProbeRequest, Unreadable, decode_answer, encode_answer
from worker.sandbox.pool import MOST_AHEAD, Children
from worker.sandbox.process import ChildProcess, ChildStalled, ChildUnavailable, ChildWaited

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture
async def children(tmp_path: Path) -> AsyncIterator[Children]:
    children = Children(1, max_pixels=1_000_000, timeout_s=5)
    await children.start()
    yield children
    await children.end()


@pytest.fixture
def endless(tmp_path: Path) -> str:
    """A picture that takes longer than any time limit here."""
    path = tmp_path / "endless"
    path.write_bytes(slow_svg(1000))
    return str(path)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "picture"
    path.write_bytes(jpeg(120, 80))
    return str(path)


def pid_of(children: Children) -> int:
    pid = children._all[0].process.pid
    assert pid is not None
    return pid


async def test_one_child_looks_at_many_pictures(children: Children, picture: str, tmp_path: Path) -> None:
    pid = pid_of(children)
    noise = tmp_path / "noise"
    noise.write_bytes(b"no picture")
    for _ in range(5):
        assert (await children.probe(picture)).width == 120
        with pytest.raises(Rejected) as refusal:
            await children.probe(str(noise))
        assert refusal.value.code == "unsupported-image"
    assert pid_of(children) == pid


async def test_a_child_that_dies_costs_one_probe_and_is_replaced(children: Children, picture: str) -> None:
    pid = pid_of(children)
    os.kill(pid, signal.SIGSTOP)
    probing = asyncio.create_task(children.probe(picture))
    await asyncio.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ChildLost):
        await probing
    assert (await children.probe(picture)).width == 120
    assert pid_of(children) != pid


async def test_a_child_that_died_while_idle_costs_nothing(children: Children, picture: str) -> None:
    pid = pid_of(children)
    os.kill(pid, signal.SIGKILL)
    while is_alive(pid):
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)  # the loop hears of it
    assert (await children.probe(picture)).width == 120


async def test_a_child_that_computes_for_too_long_is_ended(tmp_path: Path, picture: str, endless: str) -> None:
    children = Children(1, max_pixels=1_000_000, timeout_s=1)
    await children.start()
    pid = pid_of(children)
    with pytest.raises(ChildLost):
        await children.probe(endless)
    assert not is_alive(pid)
    assert (await children.probe(picture)).width == 120
    await children.end()


async def test_a_child_that_waits_for_the_disk_is_ended_and_says_nothing_about_the_picture(picture: str) -> None:
    children = Children(1, max_pixels=1_000_000, timeout_s=1)
    await children.start()
    pid = pid_of(children)
    os.kill(pid, signal.SIGSTOP)  # as a disk does that hangs while the file is read
    with pytest.raises(ChildUnavailable):
        await children.probe(picture)
    assert not is_alive(pid)
    assert (await children.probe(picture)).width == 120
    await children.end()


def test_disk_error_of_a_mapped_file_is_no_crash(endless: str) -> None:
    """The kernel ends a process by SIGBUS that reads from a mapped file what the disk does not give."""

    async def lose(children: Children, *, deleted: bool) -> ChildWaited:
        probing = asyncio.create_task(children.probe(endless))
        while children._all[0].working_s < 0.1:
            await asyncio.sleep(0.02)
        if deleted:
            Path(endless).unlink()
        os.kill(pid_of(children), signal.SIGBUS)
        with pytest.raises(ChildWaited) as caught:
            await probing
        return caught.value

    async def lose_both() -> None:
        children = Children(1, max_pixels=1_000_000, timeout_s=5)
        # A file that the worker can read is tried a limited number of times.
        assert isinstance(await lose(children, deleted=False), ChildStalled)
        assert not isinstance(await lose(children, deleted=True), ChildStalled)
        await children.end()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as a worker has it: it keeps the exit code
        runner.run(lose_both())


async def test_abandoned_pictures_are_not_sent_again(picture: str, endless: str) -> None:
    """Its file is closed, and the number of its descriptor may be another's."""
    children = Children(1, max_pixels=1_000_000, timeout_s=1)
    await children.start()
    for _ in range(40):  # they are quick, so it is given many at a time
        await children.probe(picture)
    lost = asyncio.create_task(children.probe(endless))
    await asyncio.sleep(0.1)
    left = asyncio.create_task(children.probe(picture))
    after = asyncio.create_task(children.probe(picture))
    await asyncio.sleep(0.1)
    assert children._all[0].unanswered == 3
    left.cancel()
    with pytest.raises((ChildLost, ChildUnavailable)):  # which one does not matter here
        await lost
    assert (await after).width == 120
    await children.end()


async def test_where_the_system_does_not_tell_who_computes_a_child_that_takes_too_long_is_lost(
    tmp_path: Path, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ChildProcess, "computed_s", lambda _: None)
    children = Children(1, max_pixels=1_000_000, timeout_s=0.3)
    await children.start()
    os.kill(pid_of(children), signal.SIGSTOP)
    with pytest.raises(ChildLost):
        await children.probe(picture)
    await children.end()


async def test_children_that_do_not_die_are_left_behind_but_not_without_end(
    tmp_path: Path, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a disk hangs: a process that waits for it outlives its SIGKILL."""
    children = Children(1, max_pixels=1_000_000, timeout_s=0.3)
    left: list[int] = []
    with monkeypatch.context() as undying:
        undying.setattr("asyncio.subprocess.Process.kill", lambda _: None)
        for _ in range(2):
            await children.start()
            left.append(pid_of(children))
            os.kill(left[-1], signal.SIGSTOP)
            async with asyncio.timeout(5):
                with pytest.raises(ChildUnavailable, match="waited"):
                    await children.probe(picture)
        async with asyncio.timeout(5):
            with pytest.raises(ChildUnavailable, match="do not die"):
                await children.probe(picture)
    assert all(is_alive(pid) for pid in left)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert (await children.probe(picture)).width == 120
    assert not any(is_alive(pid) for pid in left)
    await children.end()


async def test_a_cancelled_probe_leaves_no_answer_for_the_next_one(
    children: Children, picture: str, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.write_bytes(jpeg(50, 40))
    os.kill(pid_of(children), signal.SIGSTOP)
    probing = asyncio.create_task(children.probe(picture))
    await asyncio.sleep(0.1)
    probing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probing
    os.kill(pid_of(children), signal.SIGCONT)
    assert (await children.probe(str(other))).width == 50


async def test_children_know_no_secret_of_the_worker(children: Children, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGUERRE_DATABASE_URL", "postgresql://secret")
    await children.end()
    await children.start()
    environment = Path(f"/proc/{pid_of(children)}/environ").read_bytes()
    assert b"DAGUERRE" not in environment
    assert b"VIPS_CONCURRENCY=1" in environment


async def test_the_service_never_loads_libvips_and_a_worker_only_in_its_children(children: Children) -> None:
    script = "import service.http.server, worker.main, sys; sys.exit('pyvips' in sys.modules)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script)
    assert await process.wait() == 0
    assert "libvips" in Path(f"/proc/{pid_of(children)}/maps").read_text()


async def test_a_child_that_cannot_start_says_nothing_about_the_picture(
    tmp_path: Path, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    children = Children(1, max_pixels=1_000_000, timeout_s=5)
    with pytest.raises(ChildUnavailable):
        await children.probe(picture)


async def test_where_no_child_can_be_started_all_who_wait_are_told(
    tmp_path: Path, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise BlockingIOError("no more processes")

    children = Children(1, max_pixels=1_000_000, timeout_s=5)
    with monkeypatch.context() as full:
        full.setattr("worker.sandbox.process._start_process", fail)
        async with asyncio.timeout(5):
            outcomes = await asyncio.gather(*(children.probe(picture) for _ in range(5)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ChildUnavailable] * 5
    assert (await children.probe(picture)).width == 120
    await children.end()


async def test_a_child_that_cannot_be_started_lets_the_others_work(
    tmp_path: Path, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = Children(2, max_pixels=1_000_000, timeout_s=5)
    await children._all[1].start()

    async def fail(*_: object, **__: object) -> None:
        raise BlockingIOError("no more processes")

    monkeypatch.setattr("worker.sandbox.process._start_process", fail)
    outcomes = await asyncio.gather(*(children.probe(picture) for _ in range(2)), return_exceptions=True)
    assert ChildUnavailable in {type(outcome) for outcome in outcomes}
    for _ in range(20):
        assert (await children.probe(picture)).width == 120
    await children.end()


async def test_children_end_with_their_worker(tmp_path: Path) -> None:
    script = (
        "import asyncio, pathlib\nfrom worker.sandbox.pool import Children\nasync def main():\n"
        "    children = Children(1, max_pixels=1, timeout_s=1)\n    await children.start()\n"
        "    print(children._all[0].process.pid, flush=True)\n    await asyncio.sleep(60)\nasyncio.run(main())"
    )
    worker = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    assert worker.stdout is not None
    child = int(await worker.stdout.readline())
    assert is_alive(child)
    worker.kill()
    await worker.wait()
    async with asyncio.timeout(5):
        while is_alive(child):
            await asyncio.sleep(0.01)


async def test_a_file_that_cannot_be_read_says_nothing_about_the_picture(children: Children, tmp_path: Path) -> None:
    pid = pid_of(children)
    with pytest.raises(ChildUnavailable):
        await children.probe(str(tmp_path))
    assert pid_of(children) == pid


async def test_a_file_is_looked_for_at_all_of_its_places(children: Children, picture: str, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    assert (await children.probe(nowhere, picture)).width == 120
    with pytest.raises(FileNotFoundError):
        await children.probe(nowhere, nowhere)


async def test_of_the_pictures_that_a_lost_child_had_only_the_one_at_hand_is_blamed(
    picture: str, endless: str, tmp_path: Path
) -> None:
    children = Children(1, max_pixels=1_000_000, timeout_s=1)
    await children.start()
    for _ in range(40):  # they are quick, so it is given many at a time
        await children.probe(picture)
    before = asyncio.create_task(children.probe(picture))
    lost = asyncio.create_task(children.probe(endless))
    after = [asyncio.create_task(children.probe(picture)) for _ in range(4)]
    async with asyncio.timeout(5):
        while children.unanswered < MOST_AHEAD:
            await asyncio.sleep(0)
    with pytest.raises(ChildLost):
        await lost
    assert [found.width for found in await asyncio.gather(before, *after)] == [120] * 5
    await children.end()


async def test_the_log_names_the_picture_that_a_child_was_lost_at(picture: str, endless: str, tmp_path: Path) -> None:
    children = Children(1, max_pixels=1_000_000, timeout_s=1)
    await children.start()

    async def probe(path: str, image_id: str) -> None:
        with structlog.contextvars.bound_contextvars(image_id=image_id):
            await children.probe(path)

    for _ in range(40):  # they are quick, so it is given many at a time
        await children.probe(picture)
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
        before = asyncio.create_task(probe(picture, "before"))
        await asyncio.sleep(0)  # it asks first
        with pytest.raises(ChildLost):
            await probe(endless, "endless")
        await before
    assert [(line["event"], line["image_id"]) for line in logs] == [("child.lost", "endless")]
    await children.end()


async def test_what_a_child_printed_over_one_picture_is_not_said_of_the_next(
    picture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chatty = tmp_path / "python"
    chatty.write_text(f'#!/bin/sh\nprintf noise >&2\nexec "{sys.executable}" "$@"\n')
    chatty.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(chatty))
    process = ChildProcess(5)
    await process.start()
    assert process.last_words() == "noise"
    Path(f"/proc/{process.pid}/fd/2").write_bytes(b"more noise")  # as the child would
    with FileIO(picture) as file:
        process.send(ProbeRequest(1_000_000), [file])
    await process.receive()
    assert process.last_words() == ""
    await process.end()


async def test_a_child_is_given_one_picture_at_a_time_where_they_take_long(children: Children, picture: str) -> None:
    children._note(10)
    assert children.ahead == 1
    await asyncio.gather(*(children.probe(picture) for _ in range(100)))
    assert children.ahead > 1


async def test_who_waits_for_a_picture_is_told_when_the_children_end(children: Children, picture: str) -> None:
    children._note(10)
    os.kill(pid_of(children), signal.SIGSTOP)
    probing = [asyncio.create_task(children.probe(picture)) for _ in range(3)]
    await asyncio.sleep(0.1)
    await children.end()
    outcomes = await asyncio.gather(*probing, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 3


async def test_a_signal_to_the_whole_group_lets_the_picture_at_hand_finish(children: Children, picture: str) -> None:
    os.kill(pid_of(children), signal.SIGTERM)
    os.kill(pid_of(children), signal.SIGINT)
    assert (await children.probe(picture)).width == 120


async def test_a_start_that_is_cancelled_leaves_no_greeting_for_the_next_probe(tmp_path: Path, picture: str) -> None:
    children = Children(1, max_pixels=1_000_000, timeout_s=5)
    starting = asyncio.create_task(children.probe(picture))
    await asyncio.sleep(0.05)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    assert (await children.probe(picture)).width == 120
    await children.end()


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0])
def test_times_that_cannot_be_are_no_answer(seconds: float) -> None:
    for answer in (Answer(seconds, 0, unreadable=Unreadable("")), Answer(0, seconds, unreadable=Unreadable(""))):
        with pytest.raises(ConnectionError):
            decode_answer(encode_answer(answer)[LENGTH.size :])


@pytest.mark.parametrize("limit", ["_MAX_PICTURES", "_MAX_KEPT_BYTES"])
async def test_worn_child_is_replaced(
    children: Children, picture: str, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a hostile picture has made of it ends after some thousand others, or with the memory that it takes."""
    monkeypatch.setattr(f"worker.sandbox.decoder.{limit}", 3)
    monkeypatch.setattr("worker.sandbox.decoder._MEMORY_CHECK_PICTURES", 3)
    before = pid_of(children)
    assert [(await children.probe(picture)).width for _ in range(2)] == [120] * 2
    assert pid_of(children) == before
    assert [probe.width for probe in await asyncio.gather(*(children.probe(picture) for _ in range(20)))] == [120] * 20
    assert pid_of(children) != before
    assert not is_alive(before)


async def test_child_that_computed_for_long_is_replaced(
    children: Children, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the kernel ends it, at a picture that is not to blame."""
    monkeypatch.setattr("worker.sandbox.decoder.MAX_CPU_S", 0.01)
    before = pid_of(children)
    assert [(await children.probe(picture)).width for _ in range(2)] == [120] * 2
    assert not is_alive(before)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_child_gets_no_descriptor_of_its_worker(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def open_files() -> list[Path]:
        children = Children(1, max_pixels=1, timeout_s=5)
        await children.start()
        files = [path.readlink() for path in Path(f"/proc/{pid_of(children)}/fd").iterdir()]
        await children.end()
        return files

    reading, writing = os.pipe()
    os.set_inheritable(reading, True)  # as what a worker inherits itself
    with asyncio.Runner(loop_factory=new_loop) as runner:
        files = runner.run(open_files())
    pipe = Path(f"/proc/self/fd/{reading}").readlink()
    os.close(reading)
    os.close(writing)
    assert pipe not in files
    # Requests, what it prints (twice), and answers.
    assert len(files) == 4


async def test_child_of_few_pictures_is_kept(children: Children, picture: str) -> None:
    before = pid_of(children)
    await asyncio.gather(*(children.probe(picture) for _ in range(200)))
    assert pid_of(children) == before


def test_an_answer_of_endless_depth_is_none() -> None:
    with pytest.raises(ConnectionError):
        decode_answer(b"\x81\xa1x" + b"\x91" * 100_000 + b"\xc0")


def test_only_an_error_of_the_disk_says_nothing_about_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    request = ProbeRequest(1)
    folder = os.open("/", os.O_RDONLY)
    assert isinstance(child_main._find(request, [folder]), Unreadable)
    os.close(folder)

    def encode(*_: object, **__: object) -> None:
        raise OSError("encoder error -2")

    monkeypatch.setattr("worker.imaging.probe", encode)
    with pytest.raises(OSError, match="encoder error"):
        child_main._find(request, [0])


async def test_a_child_that_takes_no_requests_is_ended(picture: str) -> None:
    """Its worker never waits until there is room for another one."""
    process = ChildProcess(5)
    await process.start()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    with FileIO(picture) as file:
        for _ in range(2000):
            process.send(ProbeRequest(1_000_000), [file])
    with pytest.raises(asyncio.IncompleteReadError):
        await process.receive()
    await process.end()
