"""Keeps programs running until a signal asks to stop, then stops them in order."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Self

from service.launcher import StartError
from service.launcher.exit_reasons import exit_reason, log_position
from service.launcher.process import Program, end_orphans, start, trim_log

_STABLE_S = 30  # a program that ran this long is restarted without a delay
_MAX_DELAY_S = 30
_TRIM_INTERVAL_S = 60
_HURRIED_GRACE_S = 2
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(Exception):
    """The operator asked to stop."""


@dataclass(slots=True)
class _Part:
    program: Program
    process: subprocess.Popen[bytes] | None = None
    started: float = 0
    log_position: int = 0  # where the output of this start begins
    restarts: int = 0  # in a row
    restart_at: float = 0


@dataclass(slots=True)
class Supervisor:
    """A context manager for the main thread, whose signals it handles.

    Groups of programs are started one after the other and stopped in reverse order. `report` gets a sentence about each
    program that is restarted.
    """

    report: Callable[[str], None]
    stop_requests: int = 0
    _groups: list[list[_Part]] = field(default_factory=list)
    _is_running: bool = False
    _trim_at: float = 0
    _wake: tuple[int, int] = (-1, -1)
    _restore: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Self:
        self._wake = os.pipe()
        for end in self._wake:
            os.set_blocking(end, False)
            self._restore.callback(os.close, end)
        before = signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        self._restore.callback(signal.set_wakeup_fd, before)
        for number in _STOP_SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # under nohup, a closed terminal is no reason to stop
            self._restore.callback(signal.signal, number, signal.signal(number, self._on_stop_signal))
        # without a handler, nothing would wake this process when a child ends
        self._restore.callback(signal.signal, signal.SIGCHLD, signal.signal(signal.SIGCHLD, lambda *_: None))
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        try:
            self.stop()
        finally:
            self._restore.close()

    def start(self, programs: Sequence[Program], timeout_s: float = 60) -> None:
        """Starts a group and returns when all of its programs are ready. Raises StartError or Stopped."""
        group = [_Part(program) for program in programs]
        self._groups.append(group)
        self._tick()

        def all_ready() -> bool:
            return all(
                part.process is not None and (part.program.ready is None or part.program.ready(part.process.pid))
                for part in group
            )

        if not self.wait_until(all_ready, timeout_s):
            late = next(part for part in group if part.program.ready)
            reason = exit_reason(late.program, late.log_position)
            raise StartError(f"{late.program.name} is not ready after {timeout_s:.0f} s: {reason}")

    def wait_until(self, condition: Callable[[], bool], timeout_s: float, poll_s: float = 0.01) -> bool:
        """Polls `condition` while it supervises. Returns False after the timeout. Raises Stopped on a signal."""
        deadline = time.monotonic() + timeout_s
        while True:
            if self.stop_requests:
                raise Stopped
            if condition():
                return True
            if time.monotonic() > deadline:
                return False
            self._sleep(poll_s)
            self._tick()

    def run(self) -> None:
        """Restarts programs that exit, until a signal asks to stop."""
        self._is_running = True
        while not self.stop_requests:
            self._tick()
            self._sleep(self._idle_s())

    def stop(self) -> None:
        """Stops the groups, the last one first. A second signal shortens the grace period."""
        self._is_running = True  # a program that ends is no longer a failed start
        while self._groups:
            self._stop_group(self._groups.pop())

    def _stop_group(self, group: list[_Part]) -> None:
        running = [part for part in group if part.process is not None]
        requests = self.stop_requests
        for part in running:
            _send(part, part.program.stop_signal)
        now = time.monotonic()
        ends = {id(part): now + part.program.grace_s for part in running}
        hurried = False
        while running := [part for part in running if not _has_ended(part)]:
            now = time.monotonic()
            if self.stop_requests > requests and not hurried:
                hurried = True
                ends = {key: min(end, now + _HURRIED_GRACE_S) for key, end in ends.items()}
            for part in running:
                if now > ends[id(part)]:
                    overdue = now - ends[id(part)]
                    _send(part, part.program.hard_signal if overdue < 5 else signal.SIGKILL)
            self._sleep(0.05)
            self._tick()  # the groups that stop later are still needed

    def _tick(self) -> None:
        now = time.monotonic()
        for part in (part for group in self._groups for part in group):
            if part.process is not None and part.process.poll() is not None:
                self._handle_exit(part, now)
            if part.process is None and now >= part.restart_at:
                self._launch(part)
        if now >= self._trim_at:
            self._trim_at = now + _TRIM_INTERVAL_S
            for part in (part for group in self._groups for part in group):
                if part.program.log is not None:
                    trim_log(part.program.log)

    def _launch(self, part: _Part) -> None:
        part.started = time.monotonic()
        part.log_position = log_position(part.program)
        try:
            part.process = start(part.program)
        except (StartError, OSError) as error:
            if not self._is_running:
                raise
            self._schedule_restart(part, f"{part.program.name} cannot be started ({error})")

    def _handle_exit(self, part: _Part, now: float) -> None:
        assert part.process is not None  # noqa: S101  for the type checker
        process, part.process = part.process, None
        end_orphans(process)
        if now - part.started > _STABLE_S:
            part.restarts = 0
        code = process.returncode
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        has_own_log = part.program.log is not None and not part.program.log_is_shared
        if not self._is_running and (has_own_log or part.restarts >= 2):
            reason = exit_reason(part.program, part.log_position)
            raise StartError(f"{part.program.name} did not start: it {how}: {reason}")
        why = f" ({exit_reason(part.program, part.log_position)})" if code > 0 and has_own_log else ""
        self._schedule_restart(part, f"{part.program.name} (process {process.pid}) {how}{why}")

    def _schedule_restart(self, part: _Part, what: str) -> None:
        delay_s = min(2 ** (part.restarts - 1), _MAX_DELAY_S) if part.restarts else 0
        part.restarts += 1
        part.restart_at = time.monotonic() + delay_s
        self.report(f"{what}: starting it again{f' in {delay_s} s' if delay_s else ''}")

    def _idle_s(self) -> float:
        """Returns the seconds until the next restart or trim."""
        now = time.monotonic()
        due = [part.restart_at for group in self._groups for part in group if part.process is None]
        return max(0, min([*due, self._trim_at]) - now)

    def _sleep(self, seconds: float) -> None:
        """Sleeps for `seconds`, or until a signal arrives."""
        if select.select([self._wake[0]], [], [], seconds)[0]:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake[0], 4096)

    def _on_stop_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.stop_requests += 1


def _send(part: _Part, number: signal.Signals) -> None:
    if part.process is not None:
        with contextlib.suppress(ProcessLookupError):
            part.process.send_signal(number)


def _has_ended(part: _Part) -> bool:
    if part.process is None or part.process.poll() is None:
        return part.process is None
    end_orphans(part.process)
    return True
