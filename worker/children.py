"""Child processes that decode pictures: each probe has a time limit, and none can take the worker along.

Why not a library: pebble, the one that ends a task past its time, keeps its children on one shared pipe, looks for
news ten times a second, and offers no way to give the children an environment of their own. Here a child is a process
with its own pair of pipes on the event loop.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from service.metrics import metrics
from service.probes import Probe, Rejected
from worker.messages import (
    LENGTH,
    MAX_MESSAGE_BYTES,
    Finding,
    Missing,
    ProbeRequest,
    Refusal,
    Unreadable,
    decode_answer,
    encode_request,
)

log = structlog.get_logger("worker")

_START_TIMEOUT_S = 30
# A child whose time is up and that computed for less than this share of it was waiting for the disk. Low, so that a
# picture that takes too long counts as one even where several children share a core.
_WAITING_SHARE = 0.1
# After a start that did not succeed.
_REST_S = 1.0
# A process that waits for a disk may outlive its SIGKILL for as long as the disk hangs.
_DEATH_S = 0.5
# So many of them may be left behind by a child before it starts no more.
_MOST_DYING = 2
# A child has this much work ahead: some milliseconds hide the way to the worker and back, and more of it could be done
# by another worker.
_AHEAD_S = 0.02
MOST_AHEAD = 4
_MEAN_WEIGHT = 1 / 8


class ChildLost(Exception):
    """The child died, or computed for too long and was ended, while it worked on a picture."""


class ChildUnavailable(Exception):
    """No child can be started, or it cannot read the file; nothing is known about the picture."""


@dataclass(frozen=True, slots=True)
class _Question:
    request: ProbeRequest
    finding: asyncio.Future[Finding]


class Child:
    """One process, started when needed and again after it died, and the questions that it was given.

    It answers them in their order, so the first of them is the one that it works on. `note` is told how many seconds
    each took, and `free` that there is room for another one.
    """

    def __init__(self, timeout_s: float, *, note: Callable[[float], None], free: Callable[[], None]) -> None:
        self._timeout_s = timeout_s
        self._note = note
        self._free = free
        self._resting_until = 0.0
        self._process: Process | None = None
        self._dying: list[Process] = []  # killed; the event loop reaps each, however late it dies
        self._computed_s = 0.0
        self._questions: deque[_Question] = deque()
        self._working: asyncio.Task[None] | None = None
        self._listening = False  # the process was sent all questions there are

    @property
    def unanswered(self) -> int:
        return len(self._questions)

    @property
    def load(self) -> tuple[bool, int]:
        """By which the next question goes to the least. A child that could not start lets others go first."""
        return time.monotonic() < self._resting_until, self.unanswered

    async def start(self) -> None:
        """Raises ChildUnavailable."""
        if self._process is not None and self._is_alive(self._process):
            return
        await self._end_process()
        if len(self._dying) >= _MOST_DYING:
            raise ChildUnavailable("those before it do not die")
        try:
            process = await _start_process()
        except OSError as error:
            raise ChildUnavailable("it does not start") from error
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                greeting = decode_answer(await self._receive(process))
        except BaseException as error:
            self._kill(process)
            if isinstance(error, TimeoutError | asyncio.IncompleteReadError | ConnectionError):
                await self._bury()
                raise ChildUnavailable("it does not start") from error
            raise
        self._process, self._computed_s = process, greeting.computed_s

    def ask(self, question: _Question) -> None:
        """The finding is ChildLost if the process died or was ended at this picture, ChildUnavailable if there is none
        or if it spent all of its time waiting.
        """
        self._questions.append(question)
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
            self._working.add_done_callback(lambda _: self._free())
        elif self._listening:
            self._send(question)

    async def end(self) -> None:
        """Returns once the process is dead, or leaves it behind if it does not die soon."""
        if self._working is not None:
            self._working.cancel()
            await asyncio.wait([self._working])
        await self._end_process()

    async def _work(self) -> None:
        """Until every question has its answer. A process that was lost is replaced for those that are left."""
        try:
            while self._questions:
                await self.start()
                for question in self._questions:
                    self._send(question)
                await self._listen()
        except Exception as error:
            self._resting_until = time.monotonic() + _REST_S
            await self._end_process()
            while self._questions:
                self._settle(error)
        finally:  # where this task was cancelled
            while self._questions:
                self._questions.popleft().finding.cancel()

    async def _listen(self) -> None:
        process, began = self._process, time.monotonic()
        assert process is not None  # noqa: S101 - what start made
        self._listening = True
        try:
            while self._questions:
                began = time.monotonic()
                async with asyncio.timeout(self._timeout_s):
                    answer = decode_answer(await self._receive(process))
                self._computed_s = answer.computed_s
                self._settle(answer.finding, answer.seconds)
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError) as error:
            self._listening = False
            computed_s = _computed_s(process.pid)
            await self._end_process()
            waited = computed_s is not None and computed_s - self._computed_s < _WAITING_SHARE * self._timeout_s
            if isinstance(error, TimeoutError) and waited:
                log.warning("child.waited", exit_code=process.returncode)
                self._settle(ChildUnavailable("it waited for the disk"), time.monotonic() - began)
            else:
                metrics.child_crashes.inc()
                log.warning("child.lost", cause=type(error).__name__, exit_code=process.returncode)
                self._settle(ChildLost(), time.monotonic() - began)
        finally:
            self._listening = False

    def _settle(self, finding: Finding | Exception, seconds: float | None = None) -> None:
        future = self._questions.popleft().finding
        if not future.done():  # else nobody waits any more
            if isinstance(finding, Exception):
                future.set_exception(finding)
            else:
                future.set_result(finding)
        if seconds is not None:
            metrics.probe_seconds.observe(seconds)
            self._note(seconds)
            self._free()

    def _send(self, question: _Question) -> None:
        process = self._process
        assert process is not None and process.stdin is not None  # noqa: S101, PT018 - what start made
        if not process.stdin.is_closing():  # else its end is about to be heard
            process.stdin.write(encode_request(question.request))

    @staticmethod
    def _is_alive(process: Process) -> bool:
        return process.returncode is None and process.stdout is not None and not process.stdout.at_eof()

    async def _receive(self, process: Process) -> bytes:
        assert process.stdout is not None  # noqa: S101 - opened as a pipe
        (length,) = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
        if length > MAX_MESSAGE_BYTES:
            raise ConnectionError(f"a message of {length} bytes")
        return await process.stdout.readexactly(length)

    async def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            self._kill(process)
        await self._bury()

    def _kill(self, process: Process) -> None:
        with suppress(ProcessLookupError):
            process.kill()
        self._dying.append(process)

    async def _bury(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_DEATH_S):
                for process in self._dying:
                    await process.wait()
        self._dying = [process for process in self._dying if process.returncode is None]


class Children:
    """A fixed number of children, each given some pictures ahead, so that none waits for the worker in between."""

    def __init__(self, count: int, *, max_pixels: int, timeout_s: float) -> None:
        self._all = [Child(timeout_s, note=self._note, free=self._hand_out) for _ in range(count)]
        self._waiting: deque[_Question] = deque()
        self._max_pixels = max_pixels
        self._mean_s = _AHEAD_S

    @property
    def ahead(self) -> int:
        """Pictures that one child may have at a time: as many as it has lately looked at in `_AHEAD_S`."""
        return min(MOST_AHEAD, max(1, round(_AHEAD_S / self._mean_s)))

    @property
    def unanswered(self) -> int:
        return sum(child.unanswered for child in self._all)

    async def start(self) -> None:
        """Start them all, so that the first picture does not wait for it. Raises ChildUnavailable."""
        await asyncio.gather(*(child.start() for child in self._all))

    async def probe(self, *paths: str) -> Probe:
        """Look at the file that lies at the first of these paths that is there.

        Raises Rejected, ChildLost, ChildUnavailable, or FileNotFoundError where none is.
        """
        future: asyncio.Future[Finding] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Question(ProbeRequest(paths, self._max_pixels), future))
        self._hand_out()
        match await future:
            case Probe() as probe:
                return probe
            case Refusal(code):
                raise Rejected(code)
            case Unreadable(cause):
                raise ChildUnavailable(cause)
            case Missing():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), paths[0])

    async def end(self) -> None:
        for question in self._waiting:
            question.finding.cancel()
        self._waiting.clear()
        await asyncio.gather(*(child.end() for child in self._all))

    def _note(self, seconds: float) -> None:
        self._mean_s += _MEAN_WEIGHT * (seconds - self._mean_s)

    def _hand_out(self) -> None:
        while self._waiting:
            child = min(self._all, key=lambda child: child.load)
            if child.unanswered >= self.ahead:
                return
            question = self._waiting.popleft()
            if not question.finding.done():  # else nobody waits any more
                child.ask(question)


async def _start_process() -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # whatever lies in the folder where the worker was started is not imported
        "-m",
        "worker.child",
        str(os.getpid()),
        stdin=PIPE,
        stdout=PIPE,
        env=_environment(),
    )


def _computed_s(pid: int) -> float | None:
    """CPU time of a process and its threads so far; None where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return None


def _environment() -> dict[str, str]:
    """Nothing of the worker's own, above all no address or password of a database."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH", "LD_PRELOAD") if name in os.environ}
    return kept | {
        "PYTHONPATH": str(Path(__file__).parents[1]),  # the same code as the worker's own
        "VIPS_CONCURRENCY": "1",
        "MALLOC_ARENA_MAX": "2",  # glibc's arenas grow without end under libvips
    }
