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
from itertools import islice

import structlog

from service.telemetry.metrics import metrics
from worker.file_headers import PictureFile
from worker.sandbox.limits import MAX_CPU_S
from worker.sandbox.messages import MAX_GROUP, InvalidResponse, Request, Response, Result, check_result
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


@dataclass(slots=True)
class PendingRequest:
    """A request of the account that owns the picture.

    `files` stay open until `result` is done. `context` is that of the caller, for the log, because one task of the
    decoder serves many callers. `is_alone` means that it is sent in no group with others.
    """

    request: Request
    files: Sequence[PictureFile]
    result: asyncio.Future[Result]
    usage: Usage = field(default_factory=Usage)
    account: str = ""
    is_alone: bool = False
    context: Context = field(default_factory=copy_context)


class Decoder:
    """Sends requests to a process, which it starts on demand and replaces after a failure.

    Requests of one turn of the event loop are sent as one group, which has the time limit of one picture. The process
    handles requests in order, but writes responses of quick pictures together. So if it fails on a group, the pictures
    without a response are sent again one by one, and only a picture that fails alone is blamed.

    Calls `on_duration` with the seconds and the account of each request, and `on_idle` when it can accept another one.
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
        self._resident_bytes = 0  # of this process, at its last check
        self._pending: deque[PendingRequest] = deque()  # those that were sent first
        self._groups: deque[int] = deque()  # the number of pending requests of each group that was sent
        self._submitted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._context = copy_context()  # for the log: the fields of the process, and none of a caller
        self._is_receiving = False  # from a process that works on the pending requests
        self._started_at = 0.0  # with the first pending request

    @property
    def in_flight(self) -> int:
        return len(self._pending)

    def has_room(self, prefetch: int) -> bool:
        """Returns whether it may get a request.

        It accepts up to `prefetch` requests, and more only when it has at most half of them, so that they come in
        groups. It works on the other half meanwhile.
        """
        has_unsent = self.in_flight > sum(self._groups)
        return self.in_flight < prefetch if has_unsent else self.in_flight <= prefetch // 2

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
        if isinstance(self.process.error, InvalidResponse):  # while no picture was pending
            log.warning("decoder.failed", cause=_describe(self.process.error), exit_code=None, stderr="")
        greeting = await self.process.start()
        if greeting is not None:
            self._cpu_s = greeting.cpu_s
            self._responses = 0
            self._resident_bytes = 0
            self.missing = greeting.missing

    def submit(self, pending: PendingRequest) -> None:
        """Queues a request, and sets its result later. The exception is DecoderFailed if the process failed on this
        picture, DecoderUnavailable if no process can be started, and ReadStalled if it waited for the disk until its
        time limit.
        """
        self._pending.append(pending)
        self._submitted.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work(), context=self._context)
            self._task.add_done_callback(lambda _: self._on_idle())
        elif self._is_receiving:
            asyncio.get_running_loop().call_soon(self._send_pending)

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
                self._groups.clear()
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
            self._send_pending()
            while self._groups:
                async with asyncio.timeout(self._timeout_s):
                    while self._groups[0]:
                        self._accept(await self.process.receive())
                self._groups.popleft()
                if self._needs_replacement():
                    log.info("decoder.replaced", pictures=self._responses)
                    self._is_receiving = False
                    await self.process.stop()
                    await self.start()
                    return
                self._send_pending()
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError) as error:
            self._is_receiving = False
            await self._handle_failure(error)
        finally:
            self._is_receiving = False

    def _send_pending(self) -> None:
        """Sends the requests that were not sent yet, in groups. Drops cancelled ones: their files are closed."""
        if not self._is_receiving:
            return
        sent = sum(self._groups)
        unsent = [pending for pending in islice(self._pending, sent, None) if not pending.result.done()]
        self._pending = deque([*islice(self._pending, sent), *unsent])
        group: list[PendingRequest] = []
        for pending in unsent:
            if group and (pending.is_alone or group[0].is_alone or len(group) == MAX_GROUP):
                self._send(group)
                group = []
            group.append(pending)
        if group:
            self._send(group)

    def _send(self, group: Sequence[PendingRequest]) -> None:
        if len(group) == 1:
            group[0].is_alone = True
        self._groups.append(len(group))
        self.process.send([(pending.request, pending.files) for pending in group])

    def _accept(self, response: Response) -> None:
        """Finishes the first request. Raises InvalidResponse."""
        pending = self._pending[0]
        result = response.result
        check_result(pending.request, pending.files[0], result)
        self._add_usage(response.cpu_s - self._cpu_s)
        self._cpu_s = response.cpu_s
        self._responses += 1
        if self._responses % self._limits.memory_check_pictures == 0:
            self._resident_bytes = self.process.resident_bytes()
        self._groups[0] -= 1
        self._finish(result, min(response.seconds, self._timeout_s))

    def _needs_replacement(self) -> bool:
        limits = self._limits
        return (
            self._responses >= limits.max_pictures
            or self._cpu_s >= limits.max_cpu_s
            or self._resident_bytes > limits.max_resident_bytes
        )

    async def _handle_failure(self, error: Exception) -> None:
        """Kills the process. Blames the picture it worked on, unless the disk was the cause or that picture is one of a
        group.
        """
        cpu_s = self.process.cpu_s()
        has_low_priority = self.process.has_low_priority
        stall_share = _LOW_PRIORITY_STALL_CPU_SHARE if has_low_priority else self._limits.io_stall_cpu_share
        stderr = self.process.read_stderr()
        exit_code = await self.process.stop()
        was_idle = cpu_s is not None and cpu_s - self._cpu_s < stall_share * self._timeout_s
        # The kernel sends SIGBUS to a process that reads from a mapped file what the disk does not deliver.
        is_stall = (isinstance(error, TimeoutError) and was_idle) or exit_code == -signal.SIGBUS
        cause = _describe(error)
        if not is_stall:
            metrics.child_crashes.inc()
        group = [*islice(self._pending, self._groups[0])]
        self._groups.clear()
        if not group[0].is_alone:
            log.warning("decoder.group_failed", pictures=len(group), cause=cause, exit_code=exit_code, stderr=stderr)
            for pending in group:
                pending.is_alone = True
            return
        context = group[0].context
        seconds = time.monotonic() - self._started_at
        if is_stall:
            context.run(log.warning, "decoder.io_stalled", exit_code=exit_code, stderr=stderr)
            self._finish(ReadStalled("it waited for the disk or a core"), seconds)
        else:
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


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if isinstance(error, InvalidResponse) else type(error).__name__
