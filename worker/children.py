"""Child processes that decode pictures: each probe has a time limit, and none can take the worker along.

Why not a library: pebble, the one that ends a task past its time, keeps its children on one shared pipe, looks for
news ten times a second, and offers no way to give the children an environment of their own. Here a child is a process
with its own pair of pipes on the event loop.
"""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from pathlib import Path

import structlog

from service.metrics import metrics
from service.probes import Probe, Rejected
from worker.messages import (
    LENGTH,
    MAX_MESSAGE_BYTES,
    Answer,
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
# A process that waits for a disk may outlive its SIGKILL for as long as the disk hangs.
_DEATH_S = 0.5
# So many of them may be left behind by a child before it starts no more.
_MOST_DYING = 2


class ChildLost(Exception):
    """The child died, or computed for too long and was ended, while it worked on a picture."""


class ChildUnavailable(Exception):
    """No child can be started, or it cannot read the file; nothing is known about the picture."""


class Child:
    """One process, started when needed and again after it died."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self._dying: list[Process] = []  # killed; the event loop reaps each, however late it dies

    async def start(self) -> None:
        if self._process is not None and self._is_alive(self._process):
            return
        await self.end()
        if len(self._dying) >= _MOST_DYING:
            raise ChildUnavailable("those before it do not die")
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # whatever lies in the folder where the worker was started is not imported
            "-m",
            "worker.child",
            str(os.getpid()),
            stdin=PIPE,
            stdout=PIPE,
            env=_environment(),
        )
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await self._receive(self._process)
        except (TimeoutError, asyncio.IncompleteReadError) as error:
            await self.end()
            raise ChildUnavailable("it does not start") from error
        except BaseException:
            self._kill()  # its greeting would pass for an answer
            raise

    async def probe(self, request: ProbeRequest, timeout_s: float) -> Answer:
        """Ends the process if it is cancelled or takes longer than `timeout_s`.

        Raises ChildLost, or ChildUnavailable if it spent that time waiting.
        """
        await self.start()
        process = self._process
        assert process is not None and process.stdin is not None  # noqa: S101, PT018 - what start made
        before = _computed_s(process.pid)
        try:
            with metrics.probe_seconds.time():
                async with asyncio.timeout(timeout_s):
                    process.stdin.write(encode_request(request))
                    return decode_answer(await self._receive(process))
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError) as error:
            after = _computed_s(process.pid)
            await self.end()
            computed = before is None or after is None or after - before >= _WAITING_SHARE * timeout_s
            if isinstance(error, TimeoutError) and not computed:
                log.warning("child.waited", exit_code=process.returncode)
                raise ChildUnavailable("it waited for the disk") from error
            metrics.child_crashes.inc()
            log.warning("child.lost", cause=type(error).__name__, exit_code=process.returncode)
            raise ChildLost from error
        except BaseException:
            self._kill()  # it would answer the next one who asks
            raise

    @staticmethod
    def _is_alive(process: Process) -> bool:
        return process.returncode is None and process.stdout is not None and not process.stdout.at_eof()

    async def _receive(self, process: Process) -> bytes:
        assert process.stdout is not None  # noqa: S101 - opened as a pipe
        (length,) = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
        if length > MAX_MESSAGE_BYTES:
            raise ConnectionError(f"a message of {length} bytes")
        return await process.stdout.readexactly(length)

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            self._dying.append(process)

    async def end(self) -> None:
        """Returns once it is dead, or leaves it behind if it does not die soon."""
        self._kill()
        with suppress(TimeoutError):
            async with asyncio.timeout(_DEATH_S):
                for process in self._dying:
                    await process.wait()
        self._dying = [process for process in self._dying if process.returncode is None]


class Children:
    """A fixed number of children; a probe waits for a free one."""

    def __init__(self, count: int, *, max_pixels: int, timeout_s: float) -> None:
        self._all = [Child() for _ in range(count)]
        self._free: asyncio.LifoQueue[Child] = asyncio.LifoQueue()
        for child in self._all:
            self._free.put_nowait(child)
        self._max_pixels = max_pixels
        self._timeout_s = timeout_s

    async def start(self) -> None:
        """Start them all, so that the first picture does not wait for it."""
        await asyncio.gather(*(child.start() for child in self._all))

    async def probe(self, path: str) -> Probe:
        """Raises Rejected, ChildLost or ChildUnavailable."""
        child = await self._free.get()
        try:
            answer = await child.probe(ProbeRequest(path, self._max_pixels), self._timeout_s)
        finally:
            self._free.put_nowait(child)
        if isinstance(answer, Unreadable):
            raise ChildUnavailable(answer.cause)
        if isinstance(answer, Refusal):
            raise Rejected(answer.code)
        return answer

    async def end(self) -> None:
        await asyncio.gather(*(child.end() for child in self._all))


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
