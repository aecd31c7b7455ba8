"""The operating system process of one decoder: starts it, exchanges messages with it, and stops it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from asyncio.subprocess import Process
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from worker.file_headers import PictureFile
from worker.sandbox.limits import MEMORY_BYTES
from worker.sandbox.messages import (
    GREETING_TOKEN,
    MAX_METADATA_BYTES,
    TOKEN_BYTES,
    Envelope,
    Request,
    Response,
    encode_requests,
    max_response_bytes,
)
from worker.sandbox.response_reader import ResponseReader

_START_TIMEOUT_S = 30
# A process that waits for a disk outlives its SIGKILL for as long as the disk hangs.
KILL_TIMEOUT_S = 0.5
# No further process is started while this many killed ones are still alive.
_MAX_DYING = 2
# Quick pictures have priority over slow ones. Not lower than the priority of renditions, because the time limit of a
# slow picture keeps running.
_NICENESS_INCREMENT = 5
# A process has a low priority for this long after the last slow picture, and is replaced then. It is not replaced when
# it becomes idle, because a start costs as much as some fifty pictures.
LOW_PRIORITY_S = 5.0
# At most this much of stderr is logged; the pipe holds more.
_STDERR_TAIL_BYTES = 1000


class DecoderUnavailable(Exception):
    """No decoder can be started, or it cannot read the file. The picture is not to blame."""


class ReadStalled(DecoderUnavailable):
    """The decoder did not get the bytes of the file, or reported an error of the disk."""


class DecoderStalled(ReadStalled):
    """The decoder did not read the file, although the worker can: the disk is not the cause."""


class DecoderProcess:
    """Owns one running process at a time, and killed ones that are not dead yet.

    The process can read the files that come with requests, and may compute for `timeout_s` on each picture.
    """

    def __init__(self, timeout_s: float, niceness: int = 0, *, low_priority_s: float = LOW_PRIORITY_S) -> None:
        self._args = (str(timeout_s), str(niceness))
        self._niceness = niceness
        self._low_priority_s = low_priority_s
        self._low_priority_pid = 0
        self._low_priority_until = 0.0
        self._process: Process | None = None
        self._requests: socket.socket | None = None  # to its stdin
        self._responses = ResponseReader()  # from its stdout
        self._stderr: int | None = None  # the reading end of a pipe
        self._dying: list[Process] = []  # the event loop reaps each, however late it dies

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def error(self) -> Exception | None:
        """Why no more responses can be received."""
        return self._responses.error

    @property
    def has_low_priority(self) -> bool:
        return self.pid == self._low_priority_pid

    @property
    def low_priority_remaining_s(self) -> float:
        """Seconds until the process may be replaced by one of ordinary priority; at most 0 if it may be now."""
        return self._low_priority_until - time.monotonic() if self.has_low_priority else 0.0

    def lower_priority(self) -> None:
        """Lowers the CPU priority. Only root may raise it again, so the process must be replaced afterwards."""
        self._low_priority_until = time.monotonic() + self._low_priority_s
        if self.pid is None or self.has_low_priority:
            return
        self._low_priority_pid = self.pid
        with suppress(OSError):
            for thread in Path(f"/proc/{self.pid}/task").iterdir():
                os.setpriority(os.PRIO_PROCESS, int(thread.name), self._niceness + _NICENESS_INCREMENT)

    async def start(self) -> Response | None:
        """Returns the greeting of a new process, or None if one is running already. Raises DecoderUnavailable."""
        if self._process is not None and self._process.returncode is None and self.error is None:
            return None
        await self.stop()
        if len(self._dying) >= _MAX_DYING:
            raise DecoderUnavailable("killed processes are still alive")
        try:
            process = await self._open_process()
        except OSError as error:
            raise DecoderUnavailable("it does not start") from error
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                greeting = await self._responses.receive()
        except BaseException as error:
            self._stop(process)
            if isinstance(error, TimeoutError | asyncio.IncompleteReadError | ConnectionError):
                await self._wait_for_deaths(KILL_TIMEOUT_S)
                raise DecoderUnavailable(f"it does not start: {self.read_stderr()}") from error
            raise
        self._process = process
        return greeting

    def send(self, group: Sequence[tuple[Request, Sequence[PictureFile]]]) -> None:
        """Sends requests as one message, and duplicates of their files' descriptors. Kills a process that does not read
        requests.
        """
        assert self._process is not None and self._requests is not None  # noqa: S101, PT018 - set by start
        envelopes = []
        for request, files in group:
            envelope = Envelope(os.urandom(TOKEN_BYTES), request, len(files))
            self._responses.expect(envelope.token, max_response_bytes(request, files[0]))
            envelopes.append(envelope)
        message = encode_requests(envelopes)
        try:
            sent = socket.send_fds(self._requests, [message], [file.fileno() for _, files in group for file in files])
        except OSError:
            sent = 0
        # The socket's buffer holds far more than the requests of one decoder: the process has ended or does not read.
        if sent < len(message):
            _kill(self._process)

    async def receive(self) -> Response:
        """Returns the response to the oldest request. Raises what ResponseReader.receive does."""
        response = await self._responses.receive()
        if not self._responses.has_response:
            self._drain_stderr()  # so that `read_stderr` returns no output of this picture if the next one fails
        return response

    def read_stderr(self) -> str:
        """Returns the end of what the process has printed since its last response, as one printable line."""
        tail = self._drain_stderr()[-_STDERR_TAIL_BYTES:].decode(errors="replace")
        return "".join(char if char.isprintable() else " " for char in tail).strip()

    def _drain_stderr(self) -> bytes:
        with suppress(BlockingIOError):  # it is empty
            if self._stderr is not None:
                return os.read(self._stderr, 1 << 16)
        return b""

    async def stop(self, timeout_s: float = KILL_TIMEOUT_S) -> int | None:
        """Kills the process. Returns its exit code, or None if it is still alive after `timeout_s`."""
        process, self._process = self._process, None
        if process is not None:
            self._stop(process)
        await self._wait_for_deaths(timeout_s)
        self._responses.close()
        self._responses = ResponseReader()
        if self._requests is not None:
            self._requests.close()
            self._requests = None
        if self._stderr is not None:
            os.close(self._stderr)
            self._stderr = None
        return process.returncode if process else None

    async def wait(self) -> int:
        """Waits until the process exits by itself, and returns its exit code."""
        assert self._process is not None  # noqa: S101 - set by start
        return await self._process.wait()

    def resident_bytes(self) -> int:
        """Returns the resident memory, or 0 if the system does not report it."""
        try:
            pages = Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1]
            return int(pages) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError, ValueError):
            return 0

    def cpu_s(self) -> float | None:
        """Returns the CPU time of the process and its threads so far, or None if the system does not report it."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii", errors="replace")
            fields = stat.rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except (OSError, IndexError, ValueError):
            return None

    async def _open_process(self) -> Process:
        with ExitStack() as stack:
            self._requests, requests = socket.socketpair()
            stack.callback(requests.close)
            self._requests.setblocking(False)
            self._requests.shutdown(socket.SHUT_RD)  # responses come through a pipe, which cannot carry descriptors
            responses, stdout = os.pipe()
            stack.callback(os.close, stdout)
            self._responses = await _read_responses(responses)
            self._stderr, stderr = os.pipe()
            stack.callback(os.close, stderr)
            # Unread output is dropped, so that a process that prints much neither blocks nor fills a log.
            os.set_blocking(self._stderr, False)
            os.set_blocking(stderr, False)
            return await _open_process(*self._args, requests=requests, stdout=stdout, stderr=stderr)

    def _stop(self, process: Process) -> None:
        _kill(process)
        self._dying.append(process)

    async def _wait_for_deaths(self, timeout_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                for process in self._dying:
                    await process.wait()
        self._dying = [process for process in self._dying if process.returncode is None]


def _kill(process: Process) -> None:
    # Before Python 3.13, `process.kill()` itself reaps a process that has just exited, and asyncio reports 255 instead
    # of its exit code (https://github.com/python/cpython/issues/87744).
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


async def _read_responses(pipe: int) -> ResponseReader:
    """Returns a reader of the responses in a pipe, which it closes. Expects a greeting."""
    _, reader = await asyncio.get_running_loop().connect_read_pipe(ResponseReader, os.fdopen(pipe, "rb", buffering=0))
    reader.expect(GREETING_TOKEN, MAX_METADATA_BYTES)
    return reader


async def _open_process(*args: str, requests: socket.socket, stdout: int, stderr: int) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # import nothing from the folder where the worker was started
        "-m",
        "worker.sandbox.decoder_main",
        str(os.getpid()),
        *args,
        stdin=requests.fileno(),
        stdout=stdout,
        stderr=stderr,
        env=decoder_environment(),
    )


def decoder_environment() -> dict[str, str]:
    """Returns the environment of a decoder: none of the worker's settings, above all no database URL or password."""
    names = ("PATH", "LANG", "LD_LIBRARY_PATH", "LD_PRELOAD")
    return {name: os.environ[name] for name in names if name in os.environ} | {
        "PYTHONPATH": str(Path(__file__).parents[2]),  # the worker's own code
        "VIPS_CONCURRENCY": "1",
        # numpy, which simplejpeg loads, would start a thread per core. A thread of before the sandbox is not confined.
        "OPENBLAS_NUM_THREADS": "1",
        # Pixels that a loader cannot stream, e.g. a WebP's, stay in memory: the sandbox allows no temporary files.
        "VIPS_DISC_THRESHOLD": str(MEMORY_BYTES),
        "MALLOC_ARENA_MAX": "2",  # glibc's arenas grow without bound under libvips
    }
