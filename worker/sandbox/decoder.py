"""One decoder on the worker's side: its queue of requests, and which picture is to blame if its process fails."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import dataclass, field

import structlog

from service.telemetry.metrics import metrics
from worker.file_headers import PictureFile
from worker.sandbox.limits import MAX_CPU_S
from worker.sandbox.messages import InvalidResponse, Request, Result, check_result, max_response_bytes
from worker.sandbox.process import LOW_PRIORITY_S, DecoderProcess, ReadStalled

log = structlog.get_logger("worker")

# The `io_stall_cpu_share` of a process of low priority, which may also have waited for a core.
_LOW_PRIORITY_STALL_CPU_SHARE = 0.5
# The worker does not wait longer than this for its processes to die; a killed one with much memory may take a while.
_CLOSE_TIMEOUT_S = 3.0


class DecoderFailed(Exception):
    """The process crashed, timed out or sent an invalid response while it worked on a picture. It was killed."""


@dataclass(frozen=True, slots=True)
class DecoderLimits:
    """Limits after which a process is replaced, so that the effects of a hostile picture end, and rules to classify
    failures.

    The memory is what a process uses between two pictures. It is checked after every `memory_check_pictures`.

    A process that timed out after less than `io_stall_cpu_share` of the time on the CPU was waiting for the disk. The
    share is low, so that a picture that takes too long is recognised even if several decoders share a core.
    """

    max_pictures: int = 10_000
    max_cpu_s: float = MAX_CPU_S
    max_resident_bytes: int = 512 << 20
    memory_check_pictures: int = 64
    low_priority_s: float = LOW_PRIORITY_S
    start_backoff_s: float = 1.0  # after a failed start
    io_stall_cpu_share: float = 0.1


DEFAULT_LIMITS = DecoderLimits()


@dataclass(slots=True)
class Usage:
    """The duration of a request: CPU time, or wall time if the decoder failed."""

    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class PendingRequest:
    """A request of the account that owns the picture.

    `files` stay open until `result` is done. `context` is that of the caller, for the log, because one task of the
    decoder serves many callers.
    """

    request: Request
    files: Sequence[PictureFile]
    result: asyncio.Future[Result]
    usage: Usage = field(default_factory=Usage)
    account: str = ""
    context: Context = field(default_factory=copy_context)


class Decoder:
    """Sends requests to a process, which it starts on demand and replaces after a failure.

    The process handles requests in order, so the first one without a response is the one it is working on. Calls
    `on_duration` with the seconds and the account of each request, and `on_idle` when it can accept another one.
    """

    def __init__(
        self,
        timeout_s: float,
        *,
        on_duration: Callable[[float, str], None],
        on_idle: Callable[[], None],
        niceness: int = 0,
        limits: DecoderLimits = DEFAULT_LIMITS,
    ) -> None:
        self.process = DecoderProcess(timeout_s, niceness, low_priority_s=limits.low_priority_s)
        self.missing: Sequence[str] = ()  # parts of the sandbox that the system lacks
        self._timeout_s = timeout_s
        self._on_duration = on_duration
        self._on_idle = on_idle
        self._limits = limits
        self._backoff_until = 0.0
        self._cpu_s = 0.0  # of this process, at its last response
        self._responses = 0  # of this process
        self._pending: deque[PendingRequest] = deque()
        self._submitted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_receiving = False  # all pending requests were sent to the process
        self._started_at = 0.0  # with the first pending request

    @property
    def in_flight(self) -> int:
        return len(self._pending)

    @property
    def account(self) -> str | None:
        """The account of its requests, or None if it has none."""
        return self._pending[0].account if self._pending else None

    @property
    def current_s(self) -> float:
        """Seconds since it started to work on its first request."""
        return time.monotonic() - self._started_at if self._pending and self._is_receiving else 0.0

    @property
    def is_backing_off(self) -> bool:
        """Whether its process recently failed to start, so that other decoders are preferred."""
        return time.monotonic() < self._backoff_until

    async def start(self) -> None:
        """Raises DecoderUnavailable."""
        greeting = await self.process.start()
        if greeting is not None:
            self._cpu_s = greeting.cpu_s
            self._responses = 0
            self.missing = greeting.missing

    def submit(self, pending: PendingRequest) -> None:
        """Queues a request, and sets its result later. The exception is DecoderFailed if the process failed on this
        picture, DecoderUnavailable if no process can be started, and ReadStalled if it waited for the disk until its
        time limit.
        """
        self._pending.append(pending)
        self._submitted.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
            self._task.add_done_callback(lambda _: self._on_idle())
        elif self._is_receiving:
            self.process.send(pending.request, pending.files)

    async def close(self) -> None:
        """Returns once the process is dead, or when it does not die soon."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self.process.stop(_CLOSE_TIMEOUT_S)

    async def _work(self) -> None:
        """Runs until no request is pending, and a process of low priority has been replaced."""
        try:
            while self._pending or self.process.has_low_priority:
                await self._wait_for_request(self.process.low_priority_remaining_s)
                if not self._pending:
                    await self.process.stop()
                await self.start()
                # Cancelled requests are dropped: their files are closed.
                self._pending = deque(pending for pending in self._pending if not pending.result.done())
                for pending in self._pending:
                    self.process.send(pending.request, pending.files)
                await self._receive_all()
        except Exception as error:
            self._backoff_until = time.monotonic() + self._limits.start_backoff_s
            await self.process.stop()
            while self._pending:
                self._finish(error)
        finally:  # if this task was cancelled
            while self._pending:
                self._pending.popleft().result.cancel()

    async def _wait_for_request(self, timeout_s: float) -> None:
        if not self._pending and timeout_s > 0:
            self._submitted.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._submitted.wait()

    async def _receive_all(self) -> None:
        """Returns when no request is pending, or when the process has failed or was replaced."""
        self._started_at = time.monotonic()
        self._is_receiving = True
        try:
            while self._pending:
                async with asyncio.timeout(self._timeout_s):
                    result, seconds = await self._receive()
                self._finish(result, seconds)
                if self._needs_replacement():
                    log.info("decoder.replaced", pictures=self._responses)
                    self._is_receiving = False
                    await self.process.stop()
                    await self.start()
                    return
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError) as error:
            self._is_receiving = False
            await self._handle_failure(error)
        finally:
            self._is_receiving = False

    async def _receive(self) -> tuple[Result, float]:
        """Returns the result of the first request and its seconds. Raises what DecoderProcess.receive does."""
        pending = self._pending[0]
        response = await self.process.receive(max_response_bytes(pending.request, pending.files[0]))
        result = response.result
        check_result(pending.request, pending.files[0], result)
        self._add_usage(response.cpu_s - self._cpu_s)
        self._cpu_s = response.cpu_s
        self._responses += 1
        return result, min(response.seconds, self._timeout_s)

    def _needs_replacement(self) -> bool:
        limits = self._limits
        is_checked = self._responses % limits.memory_check_pictures == 0
        if is_checked and self.process.resident_bytes() > limits.max_resident_bytes:
            return True
        return self._responses >= limits.max_pictures or self._cpu_s >= limits.max_cpu_s

    async def _handle_failure(self, error: Exception) -> None:
        """Kills the process, and blames the picture it worked on unless the disk was the cause."""
        cpu_s = self.process.cpu_s()
        has_low_priority = self.process.has_low_priority
        stall_share = _LOW_PRIORITY_STALL_CPU_SHARE if has_low_priority else self._limits.io_stall_cpu_share
        stderr = self.process.read_stderr()
        exit_code = await self.process.stop()
        was_idle = cpu_s is not None and cpu_s - self._cpu_s < stall_share * self._timeout_s
        # The kernel sends SIGBUS to a process that reads from a mapped file what the disk does not deliver.
        is_stall = (isinstance(error, TimeoutError) and was_idle) or exit_code == -signal.SIGBUS
        context = self._pending[0].context
        seconds = time.monotonic() - self._started_at
        if is_stall:
            context.run(log.warning, "decoder.io_stalled", exit_code=exit_code, stderr=stderr)
            self._finish(ReadStalled("it waited for the disk or a core"), seconds)
        else:
            metrics.child_crashes.inc()
            cause = f"{type(error).__name__}: {error}" if isinstance(error, InvalidResponse) else type(error).__name__
            context.run(log.warning, "decoder.failed", cause=cause, exit_code=exit_code, stderr=stderr)
            self._add_usage(seconds)
            self._finish(DecoderFailed(), seconds)

    def _add_usage(self, seconds: float) -> None:
        """Adds seconds to the usage, clamped to what the worker allows, because the process may lie."""
        self._pending[0].usage.seconds += min(max(0.0, seconds), self._timeout_s)

    def _finish(self, result: Result | Exception, seconds: float | None = None) -> None:
        pending = self._pending.popleft()
        self._started_at = time.monotonic()
        future = pending.result
        if not future.done():  # it was cancelled
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
        if seconds is not None:
            self._on_duration(seconds, pending.account)
            self._on_idle()
