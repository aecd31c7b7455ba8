"""Keeps programs running until it is told to stop, then ends them in order."""

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
from service.launcher.process import Program, end_orphans, start, trim_log
from service.launcher.reasons import last_words, mark_log

_STEADY_S = 30  # who lived this long is replaced at once
_LONGEST_DELAY_S = 30
_TRIM_EVERY_S = 60
_HURRIED_S = 2
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(Exception):
    """The operator asked to stop."""


@dataclass(slots=True)
class _Part:
    program: Program
    process: subprocess.Popen[bytes] | None = None
    started: float = 0
    log_position: int = 0  # where the words of this start begin
    deaths: int = 0  # in a row
    restart_at: float = 0


@dataclass(slots=True)
class Supervisor:
    """Use it as a context manager in the main thread: it takes over the signals meanwhile.

    Groups of programs are started one after the other and ended in the opposite order. `report` gets a line on
    each program that is replaced.
    """

    report: Callable[[str], None]
    stop_requests: int = 0
    _groups: list[list[_Part]] = field(default_factory=list)
    _steady: bool = False
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
                continue  # under nohup a terminal that closes is no reason to stop
            self._restore.callback(signal.signal, number, signal.signal(number, self._ask_to_stop))
        # with no handler at all there would be no wake-up when a child ends
        self._restore.callback(signal.signal, signal.SIGCHLD, signal.signal(signal.SIGCHLD, lambda *_: None))
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        try:
            self.stop()
        finally:
            self._restore.close()

    def start(self, programs: Sequence[Program], timeout_s: float = 60) -> None:
        """Start a group and wait until each of it is ready."""
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
            reason = last_words(late.program, late.log_position)
            raise StartError(f"{late.program.name} is not ready after {timeout_s:.0f} s: {reason}")

    def wait_until(self, condition: Callable[[], bool], timeout_s: float, every_s: float = 0.01) -> bool:
        """Look again and again, and after the programs meanwhile. False if it was in vain; may raise Stopped."""
        deadline = time.monotonic() + timeout_s
        while True:
            if self.stop_requests:
                raise Stopped
            if condition():
                return True
            if time.monotonic() > deadline:
                return False
            self._sleep(every_s)
            self._tick()

    def run(self) -> None:
        """Replace what dies, until a signal asks to stop."""
        self._steady = True
        while not self.stop_requests:
            self._tick()
            self._sleep(self._next_s())

    def stop(self) -> None:
        """End the groups, the last one first. A second signal shortens what is left of the waiting."""
        self._steady = True  # no death is a reason to give up any more
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
                ends = {key: min(end, now + _HURRIED_S) for key, end in ends.items()}
            for part in running:
                if now > ends[id(part)]:
                    overdue = now - ends[id(part)]
                    _send(part, part.program.hard_signal if overdue < 5 else signal.SIGKILL)
            self._sleep(0.05)
            self._tick()  # those that stop later are still needed

    def _tick(self) -> None:
        now = time.monotonic()
        for part in (part for group in self._groups for part in group):
            if part.process is not None and part.process.poll() is not None:
                self._bury(part, now)
            if part.process is None and now >= part.restart_at:
                self._launch(part)
        if now >= self._trim_at:
            self._trim_at = now + _TRIM_EVERY_S
            for part in (part for group in self._groups for part in group):
                if part.program.log is not None:
                    trim_log(part.program.log)

    def _launch(self, part: _Part) -> None:
        part.started = time.monotonic()
        part.log_position = mark_log(part.program)
        try:
            part.process = start(part.program)
        except (StartError, OSError) as error:
            if not self._steady:
                raise
            self._delay(part, f"{part.program.name} cannot be started ({error})")

    def _bury(self, part: _Part, now: float) -> None:
        assert part.process is not None  # noqa: S101  for the type checker
        process, part.process = part.process, None
        end_orphans(process)
        if now - part.started > _STEADY_S:
            part.deaths = 0
        code = process.returncode
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        has_own_log = part.program.log is not None and not part.program.log_is_shared
        if not self._steady and (has_own_log or part.deaths >= 2):
            reason = last_words(part.program, part.log_position)
            raise StartError(f"{part.program.name} did not start: it {how}: {reason}")
        why = f" ({last_words(part.program, part.log_position)})" if code > 0 and has_own_log else ""
        self._delay(part, f"{part.program.name} (process {process.pid}) {how}{why}")

    def _delay(self, part: _Part, what: str) -> None:
        delay_s = min(2 ** (part.deaths - 1), _LONGEST_DELAY_S) if part.deaths else 0
        part.deaths += 1
        part.restart_at = time.monotonic() + delay_s
        self.report(f"{what}: starting it again{f' in {delay_s} s' if delay_s else ''}")

    def _next_s(self) -> float:
        """How long there is nothing to do, unless a signal comes."""
        now = time.monotonic()
        due = [part.restart_at for group in self._groups for part in group if part.process is None]
        return max(0, min([*due, self._trim_at]) - now)

    def _sleep(self, seconds: float) -> None:
        """Until a signal comes, at the longest."""
        if select.select([self._wake[0]], [], [], seconds)[0]:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake[0], 4096)

    def _ask_to_stop(self, _number: int, _frame: FrameType | None) -> None:
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
