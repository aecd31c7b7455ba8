"""The process of one child: started, spoken to, and ended."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path

from worker.sandbox.confinement import MEMORY_BYTES
from worker.sandbox.messages import (
    GREETING_TOKEN,
    HEADER_BYTES,
    LENGTH,
    MAX_WORDS_BYTES,
    TOKEN_BYTES,
    Answer,
    OddAnswer,
    Request,
    decode_answer,
    encode_request,
)

_START_TIMEOUT_S = 30
# A process that waits for a disk may outlive its SIGKILL for as long as the disk hangs.
DEATH_S = 0.5
# So many of them may be left behind before no more is started.
_MOST_DYING = 2
# A child that works on slow pictures leaves the cores to those that do not. As little as that of renditions: its time
# limit goes on.
_LOWERED_BY = 5
# After that it is replaced, and not whenever it has nothing to do: a start costs as much as some fifty pictures.
_KEEP_LOWERED_S = 5.0
# Of what a child has printed; the pipe holds more.
_LAST_WORDS_BYTES = 1000


class ChildUnavailable(Exception):
    """No child can be started, or it cannot read the file; nothing is known about the picture."""


class ChildWaited(ChildUnavailable):
    """The child did not get the bytes of the file, or says so."""


class ChildStalled(ChildWaited):
    """The same of a file that the worker can read: the disk is not the cause."""


class ChildProcess:
    """There is one process at a time, and those before it that were killed and do not die yet.

    It may read the files that come with requests, and compute for `timeout_s` a picture. The system prefers others to
    it by `niceness`.
    """

    def __init__(self, timeout_s: float, niceness: int = 0) -> None:
        self._args = (str(timeout_s), str(niceness))
        self._niceness = niceness
        self._lowered_pid = 0
        self._lowered_until = 0.0
        self._process: Process | None = None
        self._requests: socket.socket | None = None  # to its stdin
        self._tokens: deque[bytes] = deque()  # of those that it has not answered
        self._printed: int | None = None  # a pipe
        self._dying: list[Process] = []  # the event loop reaps each, however late it dies

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def is_lowered(self) -> bool:
        return self.pid == self._lowered_pid

    @property
    def lowered_s(self) -> float:
        """How long it is kept with a low priority, since more slow pictures may come. 0 or less if it is not."""
        return self._lowered_until - time.monotonic() if self.is_lowered else 0.0

    def lower_priority(self) -> None:
        """The system prefers others to it from now on. There is no way back: only root may raise a priority."""
        self._lowered_until = time.monotonic() + _KEEP_LOWERED_S
        if self.pid is None or self.is_lowered:
            return
        self._lowered_pid = self.pid
        with suppress(OSError):
            for thread in Path(f"/proc/{self.pid}/task").iterdir():
                os.setpriority(os.PRIO_PROCESS, int(thread.name), self._niceness + _LOWERED_BY)

    async def start(self) -> Answer | None:
        """Start one, unless one is there that lives. Returns the greeting of a new one. Raises ChildUnavailable."""
        if self._process is not None and self._is_alive(self._process):
            return None
        await self.end()
        if len(self._dying) >= _MOST_DYING:
            raise ChildUnavailable("those before it do not die")
        try:
            process = await self._start_process()
        except OSError as error:
            raise ChildUnavailable("it does not start") from error
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                greeting = await _receive(process, GREETING_TOKEN, MAX_WORDS_BYTES)
        except BaseException as error:
            self._kill(process)
            if isinstance(error, TimeoutError | asyncio.IncompleteReadError | ConnectionError):
                await self._bury(DEATH_S)
                raise ChildUnavailable(f"it does not start: {self.last_words()}") from error
            raise
        self._process = process
        return greeting

    def send(self, request: Request, files: Sequence[FileIO]) -> None:
        """Sends the request, and duplicates of the descriptors of its files. A process that does not take them ends."""
        assert self._process is not None and self._requests is not None  # noqa: S101, PT018 - what start made
        token = os.urandom(TOKEN_BYTES)
        frame = token + encode_request(request)
        self._tokens.append(token)
        try:
            sent = socket.send_fds(self._requests, [frame], [file.fileno() for file in files])
        except OSError:
            sent = 0
        # The socket holds much more than all requests that a child has ahead: it is at its end, or does not read.
        if sent < len(frame):
            with suppress(ProcessLookupError):
                self._process.kill()

    async def receive(self, max_bytes: int = MAX_WORDS_BYTES) -> Answer:
        """The answer to the first request that has none. Raises IncompleteReadError or ConnectionError if the process
        died, OddAnswer for what is no answer to it or has more bytes.
        """
        assert self._process is not None  # noqa: S101 - what start made
        answer = await _receive(self._process, self._tokens.popleft(), max_bytes)
        self._read_printed()  # over that picture, and not the one that it may be lost at
        return answer

    def last_words(self) -> str:
        """The end of what it has printed since its last answer, on one line; until `end`."""
        words = self._read_printed()[-_LAST_WORDS_BYTES:].decode(errors="replace")
        return "".join(letter if letter.isprintable() else " " for letter in words).strip()  # nothing for a terminal

    def _read_printed(self) -> bytes:
        with suppress(BlockingIOError):  # nothing
            if self._printed is not None:
                return os.read(self._printed, 1 << 16)
        return b""

    async def end(self, death_s: float = DEATH_S) -> int | None:
        """Returns its exit code once it is dead, or None if it takes longer than `death_s`: it is left behind then."""
        process, self._process = self._process, None
        if process is not None:
            self._kill(process)
        await self._bury(death_s)
        if self._requests is not None:
            self._requests.close()
            self._requests = None
        if self._printed is not None:
            os.close(self._printed)
            self._printed = None
        return process.returncode if process else None

    def resident_bytes(self) -> int:
        """Memory that it has at this time; 0 if the system does not say."""
        try:
            pages = Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1]
            return int(pages) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError, ValueError):
            return 0

    def computed_s(self) -> float | None:
        """CPU time of the process and its threads so far; None where the system does not tell."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii", errors="replace")
            fields = stat.rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except (OSError, IndexError, ValueError):
            return None

    async def _start_process(self) -> Process:
        self._tokens.clear()
        self._requests, requests = socket.socketpair()
        self._printed, printing = os.pipe()
        try:
            self._requests.setblocking(False)
            self._requests.shutdown(socket.SHUT_RD)  # answers come through a pipe, which takes no descriptors
            # What nobody reads is dropped: a child that prints much neither waits nor fills a log.
            os.set_blocking(self._printed, False)
            os.set_blocking(printing, False)
            return await _start_process(*self._args, requests=requests, printing=printing)
        finally:
            requests.close()
            os.close(printing)

    @staticmethod
    def _is_alive(process: Process) -> bool:
        return process.returncode is None and process.stdout is not None and not process.stdout.at_eof()

    def _kill(self, process: Process) -> None:
        with suppress(ProcessLookupError):
            process.kill()
        self._dying.append(process)

    async def _bury(self, death_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(death_s):
                for process in self._dying:
                    await process.wait()
        self._dying = [process for process in self._dying if process.returncode is None]


async def _receive(process: Process, token: bytes, max_bytes: int) -> Answer:
    assert process.stdout is not None  # noqa: S101 - opened as a pipe
    header = await process.stdout.readexactly(HEADER_BYTES)
    if header[:TOKEN_BYTES] != token:
        raise OddAnswer("an answer to no request")
    (length,) = LENGTH.unpack_from(header, TOKEN_BYTES)
    if length > max_bytes:
        raise OddAnswer(f"{length} bytes, of at most {max_bytes}")
    return decode_answer(await process.stdout.readexactly(length))


async def _start_process(*args: str, requests: socket.socket, printing: int) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # whatever lies in the folder where the worker was started is not imported
        "-m",
        "worker.sandbox.child_main",
        str(os.getpid()),
        *args,
        stdin=requests.fileno(),
        stdout=PIPE,
        stderr=printing,
        env=_environment(),
    )


def _environment() -> dict[str, str]:
    """Nothing of the worker's own, above all no address or password of a database."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH", "LD_PRELOAD") if name in os.environ}
    return kept | {
        "PYTHONPATH": str(Path(__file__).parents[2]),  # the same code as the worker's own
        "VIPS_CONCURRENCY": "1",
        # Pixels that a loader cannot stream, such as a WebP's, stay in memory: a child can write no temporary file.
        "VIPS_DISC_THRESHOLD": str(MEMORY_BYTES),
        "MALLOC_ARENA_MAX": "2",  # glibc's arenas grow without end under libvips
    }
