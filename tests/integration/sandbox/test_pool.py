"""Decoder processes: each picture has its limits, and a picture that crashes its decoder affects no other one."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog
import uvloop
from structlog.testing import capture_logs

from service.images.probe import Rejected
from tests.integration.sandbox.conftest import NewPool
from tests.support.decoders import pid_of, start_request, until, warm_up
from tests.support.processes import is_alive
from tests.support.samples import jpeg
from worker.file_headers import PictureFile
from worker.sandbox import decoder_main
from worker.sandbox.decoder import DecoderFailed, DecoderLimits
from worker.sandbox.messages import LENGTH, ProbeRequest, ReadError, Response, decode_response, encode_response
from worker.sandbox.pool import DecoderPool
from worker.sandbox.process import DecoderProcess, DecoderStalled, DecoderUnavailable, ReadStalled

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


async def fail_to_start(*_: object, **__: object) -> None:
    raise BlockingIOError("no more processes")


async def test_one_process_decodes_many_pictures(pool: DecoderPool, picture: str, tmp_path: Path) -> None:
    pid = pid_of(pool)
    noise = tmp_path / "noise"
    noise.write_bytes(b"no picture")
    for _ in range(5):
        assert (await pool.probe(picture)).width == 120
        with pytest.raises(Rejected) as rejection:
            await pool.probe(str(noise))
        assert rejection.value.code == "unsupported-image"
    assert pid_of(pool) == pid


async def test_crashed_process_is_replaced(pool: DecoderPool, picture: str) -> None:
    pid = pid_of(pool)
    os.kill(pid, signal.SIGSTOP)
    probing = await start_request(pool, picture)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(DecoderFailed):
        await probing
    assert (await pool.probe(picture)).width == 120
    assert pid_of(pool) != pid


async def test_crash_while_idle_fails_no_picture(pool: DecoderPool, picture: str) -> None:
    pid = pid_of(pool)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not is_alive(pid))
    await asyncio.sleep(0.05)  # until the event loop has noticed
    assert (await pool.probe(picture)).width == 120


async def test_slow_picture_is_ended_at_its_limit(new_pool: NewPool, picture: str, endless: str) -> None:
    pool = new_pool(timeout_s=1, limits=DecoderLimits(io_stall_cpu_share=0))
    await pool.start()
    pid = pid_of(pool)
    with pytest.raises(DecoderFailed):
        await pool.probe(endless)
    assert not is_alive(pid)
    assert (await pool.probe(picture)).width == 120


async def test_io_stall_is_not_blamed_on_the_picture(new_pool: NewPool, picture: str) -> None:
    pool = new_pool(timeout_s=1)
    await pool.start()
    pid = pid_of(pool)
    os.kill(pid, signal.SIGSTOP)  # has the effect of a disk that hangs while the file is read
    with pytest.raises(DecoderUnavailable):
        await pool.probe(picture)
    assert not is_alive(pid)
    assert (await pool.probe(picture)).width == 120


def test_disk_error_of_a_mapped_file_is_no_crash(endless: str) -> None:
    """The kernel ends a process with SIGBUS if it reads from a mapped file what the disk does not deliver."""

    async def fail(pool: DecoderPool, *, deleted: bool) -> ReadStalled:
        probing = asyncio.create_task(pool.probe(endless))
        await until(lambda: pool.decoders[0].current_s > 0.1)
        if deleted:
            Path(endless).unlink()
        os.kill(pid_of(pool), signal.SIGBUS)
        with pytest.raises(ReadStalled) as caught:
            await probing
        return caught.value

    async def fail_twice() -> None:
        pool = DecoderPool(1, max_pixels=1_000_000, timeout_s=30)
        try:
            # A file that the worker can read is tried a limited number of times.
            assert isinstance(await fail(pool, deleted=False), DecoderStalled)
            assert not isinstance(await fail(pool, deleted=True), DecoderStalled)
        finally:
            await pool.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as in a worker: it reports the exit code
        runner.run(fail_twice())


async def test_cancelled_request_is_not_sent_again(new_pool: NewPool, picture: str, endless: str) -> None:
    """Its file is closed, and the descriptor's number may belong to another file."""
    pool = new_pool(timeout_s=1)
    await pool.start()
    warm_up(pool)
    failing = await start_request(pool, endless)
    cancelled = await start_request(pool, picture)
    after = await start_request(pool, picture)
    assert pool.decoders[0].in_flight == 3
    cancelled.cancel()
    with pytest.raises((DecoderFailed, DecoderUnavailable)):  # which one depends on the load of the machine
        await failing
    assert (await asyncio.wait_for(after, 20)) is not None


async def test_timeout_without_cpu_time_is_a_failure(
    new_pool: NewPool, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the system does not report CPU times, a slow disk looks like a slow picture."""
    monkeypatch.setattr(DecoderProcess, "cpu_s", lambda _: None)
    pool = new_pool(timeout_s=0.3)
    await pool.start()
    os.kill(pid_of(pool), signal.SIGSTOP)
    with pytest.raises(DecoderFailed):
        await pool.probe(picture)


async def test_undead_processes_are_bounded(new_pool: NewPool, picture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that waits for a hanging disk outlives its SIGKILL."""
    pool = new_pool(timeout_s=0.3)
    undead: list[int] = []
    try:
        with monkeypatch.context() as patches:
            patches.setattr("worker.sandbox.process._kill", lambda _: None)
            for _ in range(2):
                await pool.start()
                undead.append(pid_of(pool))
                os.kill(undead[-1], signal.SIGSTOP)
                async with asyncio.timeout(20):
                    with pytest.raises(DecoderUnavailable, match="waited"):
                        await pool.probe(picture)
            async with asyncio.timeout(20):
                with pytest.raises(DecoderUnavailable, match="still alive"):
                    await pool.probe(picture)
        assert all(is_alive(pid) for pid in undead)
    finally:
        for pid in undead:
            os.kill(pid, signal.SIGKILL)
    assert (await pool.probe(picture)).width == 120
    assert not any(is_alive(pid) for pid in undead)


async def test_cancelled_probe_leaves_no_response(pool: DecoderPool, picture: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(jpeg(50, 40))
    os.kill(pid_of(pool), signal.SIGSTOP)
    probing = await start_request(pool, picture)
    probing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probing
    os.kill(pid_of(pool), signal.SIGCONT)
    assert (await pool.probe(str(other))).width == 50


async def test_decoder_has_no_secret_in_its_environment(new_pool: NewPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGUERRE_DATABASE_URL", "postgresql://secret")
    pool = new_pool()
    await pool.start()
    environment = Path(f"/proc/{pid_of(pool)}/environ").read_bytes()
    assert b"DAGUERRE" not in environment
    assert b"VIPS_CONCURRENCY=1" in environment


async def test_only_decoders_load_libvips(pool: DecoderPool) -> None:
    script = "import service.http.server, worker.main, sys; sys.exit('pyvips' in sys.modules)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script)
    assert await process.wait() == 0
    assert "libvips" in Path(f"/proc/{pid_of(pool)}/maps").read_text()


async def test_program_that_fails_is_unavailable(
    new_pool: NewPool, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(DecoderUnavailable):
        await new_pool().probe(picture)


async def test_failed_start_fails_all_waiting_requests(
    new_pool: NewPool, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = new_pool()
    with monkeypatch.context() as patches:
        patches.setattr(asyncio, "create_subprocess_exec", fail_to_start)
        async with asyncio.timeout(20):
            outcomes = await asyncio.gather(*(pool.probe(picture) for _ in range(5)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [DecoderUnavailable] * 5
    assert (await pool.probe(picture)).width == 120


async def test_failed_start_leaves_requests_to_others(
    new_pool: NewPool, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = new_pool(2, timeout_s=30, limits=DecoderLimits(start_backoff_s=60))
    await pool.decoders[1].start()
    monkeypatch.setattr(asyncio, "create_subprocess_exec", fail_to_start)
    os.kill(pid_of(pool, 1), signal.SIGSTOP)
    first = await start_request(pool, picture)  # goes to the process that runs, which keeps it until SIGCONT
    with pytest.raises(DecoderUnavailable):
        await pool.probe(picture)
    assert pool.decoders[0].is_backing_off
    os.kill(pid_of(pool, 1), signal.SIGCONT)
    await first
    for _ in range(20):
        assert (await pool.probe(picture)).width == 120


async def test_processes_end_with_their_worker() -> None:
    script = (
        "import asyncio\nfrom worker.sandbox.pool import DecoderPool\nasync def main():\n"
        "    pool = DecoderPool(1, max_pixels=1, timeout_s=1)\n    await pool.start()\n"
        "    print(pool.decoders[0].process.pid, flush=True)\n    await asyncio.sleep(60)\nasyncio.run(main())"
    )
    worker = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    try:
        assert worker.stdout is not None
        pid = int(await worker.stdout.readline())
        assert is_alive(pid)
    finally:
        worker.kill()
        await worker.wait()
    await until(lambda: not is_alive(pid))


async def test_unreadable_file_is_not_blamed_on_the_picture(pool: DecoderPool, tmp_path: Path) -> None:
    pid = pid_of(pool)
    with pytest.raises(DecoderUnavailable):
        await pool.probe(str(tmp_path))
    assert pid_of(pool) == pid


async def test_file_is_searched_at_all_paths(pool: DecoderPool, picture: str, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    assert (await pool.probe(missing, picture)).width == 120
    with pytest.raises(FileNotFoundError):
        await pool.probe(missing, missing)


async def test_only_the_current_picture_is_blamed(new_pool: NewPool, picture: str, endless: str) -> None:
    pool = new_pool(timeout_s=1, limits=DecoderLimits(io_stall_cpu_share=0))
    await pool.start()
    warm_up(pool)
    before = asyncio.create_task(pool.probe(picture))
    failing = asyncio.create_task(pool.probe(endless))
    after = [asyncio.create_task(pool.probe(picture)) for _ in range(4)]
    await until(lambda: pool.in_flight > 1)
    with pytest.raises(DecoderFailed):
        await failing
    assert [probe.width for probe in await asyncio.gather(before, *after)] == [120] * 5


async def test_log_names_the_picture_that_failed(new_pool: NewPool, picture: str, endless: str) -> None:
    pool = new_pool(timeout_s=1, limits=DecoderLimits(io_stall_cpu_share=0))
    await pool.start()

    async def probe(path: str, image_id: str) -> None:
        with structlog.contextvars.bound_contextvars(image_id=image_id):
            await pool.probe(path)

    warm_up(pool)
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
        before = asyncio.create_task(probe(picture, "before"))
        await asyncio.sleep(0)  # its request comes first
        with pytest.raises(DecoderFailed):
            await probe(endless, "endless")
        await before
    # The two may have been sent as a group, whose failure is that of no picture.
    failures = [(line["event"], line.get("image_id")) for line in logs if line["event"] != "decoder.group_failed"]
    assert failures == [("decoder.failed", "endless")]


async def test_stderr_belongs_to_one_picture(picture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chatty = tmp_path / "python"
    chatty.write_text(f'#!/bin/sh\nprintf noise >&2\nexec "{sys.executable}" "$@"\n')
    chatty.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(chatty))
    process = DecoderProcess(5)
    try:
        await process.start()
        assert process.read_stderr() == "noise"
        Path(f"/proc/{process.pid}/fd/2").write_bytes(b"more noise")  # as the process would
        with PictureFile(picture) as file:
            process.send([(ProbeRequest(1_000_000), [file])])
        await process.receive()
        assert process.read_stderr() == ""
    finally:
        await process.stop()


async def test_prefetch_follows_the_speed_of_pictures(pool: DecoderPool, picture: str) -> None:
    pool.record_duration(10)
    assert pool.prefetch == 1
    await asyncio.gather(*(pool.probe(picture) for _ in range(100)))
    assert pool.prefetch > 1


async def test_results_wait_while_requests_are_queued(pool: DecoderPool, picture: str) -> None:
    """A decoder that works on a slow picture has only one request."""
    pool.record_duration(10)
    os.kill(pid_of(pool), signal.SIGSTOP)
    probing = [await start_request(pool, picture)]
    assert not pool.choose_result_wait_s()
    probing += [asyncio.create_task(pool.probe(picture)) for _ in range(3)]
    await until(lambda: pool.choose_result_wait_s() > 0)
    assert pool.in_flight == 1
    os.kill(pid_of(pool), signal.SIGCONT)
    await asyncio.gather(*probing)
    assert not pool.choose_result_wait_s()


async def test_close_cancels_waiting_requests(pool: DecoderPool, picture: str) -> None:
    pool.record_duration(10)
    os.kill(pid_of(pool), signal.SIGSTOP)
    probing = [asyncio.create_task(pool.probe(picture)) for _ in range(3)]
    await until(lambda: pool.in_flight == 1)
    await pool.close()
    probing.append(asyncio.create_task(pool.probe(picture)))
    outcomes = await asyncio.gather(*probing, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 4


async def test_signals_are_left_to_the_worker(pool: DecoderPool, picture: str) -> None:
    """A terminal sends them to the whole process group."""
    os.kill(pid_of(pool), signal.SIGTERM)
    os.kill(pid_of(pool), signal.SIGINT)
    assert (await pool.probe(picture)).width == 120


async def test_cancelled_start_leaves_no_greeting(new_pool: NewPool, picture: str) -> None:
    pool = new_pool()
    starting = asyncio.create_task(pool.probe(picture))
    await asyncio.sleep(0.05)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    assert (await pool.probe(picture)).width == 120


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0])
def test_impossible_durations_are_invalid(seconds: float) -> None:
    for response in (Response(seconds, 0, read_error=ReadError("")), Response(0, seconds, read_error=ReadError(""))):
        with pytest.raises(ConnectionError):
            decode_response(encode_response(response)[LENGTH.size :])


@pytest.mark.parametrize(
    "limits", [DecoderLimits(max_pictures=3), DecoderLimits(max_resident_bytes=3, memory_check_pictures=3)]
)
async def test_worn_out_process_is_replaced(new_pool: NewPool, picture: str, limits: DecoderLimits) -> None:
    """What a hostile picture has made of it ends after some thousand others, or by the memory that it takes."""
    pool = new_pool(limits=limits)
    await pool.start()
    before = pid_of(pool)
    assert [(await pool.probe(picture)).width for _ in range(2)] == [120] * 2
    assert pid_of(pool) == before
    assert [probe.width for probe in await asyncio.gather(*(pool.probe(picture) for _ in range(20)))] == [120] * 20
    await until(lambda: pool.decoders[0].process.pid not in (None, before))
    assert not is_alive(before)


async def test_process_is_replaced_after_much_cpu_time(new_pool: NewPool, picture: str) -> None:
    """Before the kernel ends it while it works on an innocent picture."""
    pool = new_pool(limits=DecoderLimits(max_cpu_s=0.01))
    await pool.start()
    before = pid_of(pool)
    assert [(await pool.probe(picture)).width for _ in range(2)] == [120] * 2
    assert not is_alive(before)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_decoder_inherits_no_descriptor(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def list_descriptors() -> list[Path]:
        pool = DecoderPool(1, max_pixels=1, timeout_s=5)
        try:
            await pool.start()
            return [path.readlink() for path in Path(f"/proc/{pid_of(pool)}/fd").iterdir()]
        finally:
            await pool.close()

    reading, writing = os.pipe()
    os.set_inheritable(reading, True)  # as a descriptor that the worker inherited itself
    with asyncio.Runner(loop_factory=new_loop) as runner:
        descriptors = runner.run(list_descriptors())
    pipe = Path(f"/proc/self/fd/{reading}").readlink()
    os.close(reading)
    os.close(writing)
    assert pipe not in descriptors
    # Requests, responses, and stderr twice.
    assert len(descriptors) == 4


async def test_process_is_kept_for_many_pictures(pool: DecoderPool, picture: str) -> None:
    before = pid_of(pool)
    await asyncio.gather(*(pool.probe(picture) for _ in range(200)))
    assert pid_of(pool) == before


def test_deeply_nested_response_is_invalid() -> None:
    with pytest.raises(ConnectionError):
        decode_response(b"\x81\xa1x" + b"\x91" * 100_000 + b"\xc0")


def test_disk_error_differs_from_a_decoding_error(monkeypatch: pytest.MonkeyPatch) -> None:
    request = ProbeRequest(1)
    folder = os.open("/", os.O_RDONLY)
    assert isinstance(decoder_main.handle(request, [folder]), ReadError)
    os.close(folder)

    def encode(*_: object, **__: object) -> None:
        raise OSError("encoder error -2")

    monkeypatch.setattr("worker.imaging.probe", encode)
    with pytest.raises(OSError, match="encoder error"):
        decoder_main.handle(request, [0])


async def test_process_that_reads_no_requests_is_killed(picture: str) -> None:
    """The worker never waits until there is room for another request."""
    process = DecoderProcess(5)
    try:
        await process.start()
        assert process.pid is not None
        os.kill(process.pid, signal.SIGSTOP)
        with PictureFile(picture) as file:
            for _ in range(2000):
                process.send([(ProbeRequest(1_000_000), [file])])
        with pytest.raises(asyncio.IncompleteReadError):
            await process.receive()
    finally:
        await process.stop()
