"""One child as the worker sees it: the questions that it was given, and whom to blame where it is lost."""

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
from worker.sandbox.checks import check, max_answer_bytes
from worker.sandbox.confinement import MAX_CPU_S
from worker.sandbox.files import PictureFile
from worker.sandbox.messages import Finding, OddAnswer, Request
from worker.sandbox.process import ChildProcess, ChildWaited

log = structlog.get_logger("worker")

# A child whose time is up and that computed for less than this share of it was waiting for the disk. Low, so that a
# picture that takes too long counts as one even where several children share a core.
_WAITING_SHARE = 0.1
# A process is replaced after this many pictures, after MAX_CPU_S, or if it keeps this much memory between two: what a
# hostile picture has made of it ends then.
_MAX_PICTURES = 10_000
_MAX_KEPT_BYTES = 512 << 20
_MEMORY_CHECK_PICTURES = 64
# One of low priority that computed for less than this share was waiting for a core that others had.
_LOWERED_WAITING_SHARE = 0.5
# After a start that did not succeed.
_REST_S = 1.0
# At the end of the worker nothing waits for the death of a process, and a killed one with much memory may take a while.
_LAST_DEATH_S = 3.0


class ChildLost(Exception):
    """The child died, computed for too long or answered oddly while it worked on a picture; it was ended then."""


@dataclass(slots=True)
class Usage:
    """The seconds of a child that a question has taken: of CPU, or of time if the child was lost."""

    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Question:
    """`context` is who asks, for the log: one task works on the questions of many. `files` are open until `finding`
    is done; `account` owns the picture.
    """

    request: Request
    files: Sequence[PictureFile]
    finding: asyncio.Future[Finding]
    usage: Usage = field(default_factory=Usage)
    account: str = ""
    context: Context = field(default_factory=copy_context)


class Child:
    """Its process is started when needed and again after it died.

    It answers the questions in their order, so the first of them is the one that it works on. `note` is told how many
    seconds each took and whose it was, and `free` that there is room for another one.
    """

    def __init__(
        self,
        timeout_s: float,
        *,
        note: Callable[[float, str], None],
        free: Callable[[], None],
        niceness: int = 0,
    ) -> None:
        self.process = ChildProcess(timeout_s, niceness)
        self.unconfined: Sequence[str] = ()  # what the system lacks to confine it
        self._timeout_s = timeout_s
        self._note = note
        self._free = free
        self._resting_until = 0.0
        self._computed_s = 0.0
        self._answered = 0  # by this process
        self._questions: deque[Question] = deque()
        self._asked = asyncio.Event()
        self._working: asyncio.Task[None] | None = None
        self._listening = False  # the process was sent all questions there are
        self._began = 0.0  # with its first question

    @property
    def unanswered(self) -> int:
        return len(self._questions)

    @property
    def account(self) -> str | None:
        """Whose pictures it has; None if it has none."""
        return self._questions[0].account if self._questions else None

    @property
    def working_s(self) -> float:
        """How long it has worked on its first question."""
        return time.monotonic() - self._began if self._questions and self._listening else 0.0

    @property
    def is_resting(self) -> bool:
        """It could not start lately: others go first."""
        return time.monotonic() < self._resting_until

    async def start(self) -> None:
        """Raises ChildUnavailable."""
        greeting = await self.process.start()
        if greeting is not None:
            self._computed_s = greeting.computed_s
            self._answered = 0
            self.unconfined = greeting.unconfined

    def ask(self, question: Question) -> None:
        """The finding is ChildLost if the process died, was ended or answered oddly at this picture, ChildUnavailable
        if there is none, and ChildWaited if it spent all of its time waiting.
        """
        self._questions.append(question)
        self._asked.set()
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
            self._working.add_done_callback(lambda _: self._free())
        elif self._listening:
            self.process.send(question.request, question.files)

    async def end(self) -> None:
        """Returns once the process is dead, or leaves it behind if it does not die soon."""
        if self._working is not None:
            self._working.cancel()
            await asyncio.wait([self._working])
        await self.process.end(_LAST_DEATH_S)

    async def _work(self) -> None:
        """Until every question has its answer. A process that was lost is replaced for those that are left, and one of
        low priority, once no slow picture comes for it any more, for those that come.
        """
        try:
            while self._questions or self.process.is_lowered:
                await self._wait_for_question(self.process.lowered_s)
                if not self._questions:
                    await self.process.end()
                await self.start()
                # Nobody waits for the others any more, and their files are closed.
                self._questions = deque(question for question in self._questions if not question.finding.done())
                for question in self._questions:
                    self.process.send(question.request, question.files)
                await self._listen()
        except Exception as error:
            self._resting_until = time.monotonic() + _REST_S
            await self.process.end()
            while self._questions:
                self._settle(error)
        finally:  # where this task was cancelled
            while self._questions:
                self._questions.popleft().finding.cancel()

    async def _wait_for_question(self, timeout_s: float) -> None:
        if not self._questions and timeout_s > 0:
            self._asked.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._asked.wait()

    async def _listen(self) -> None:
        self._began = time.monotonic()
        self._listening = True
        try:
            while self._questions:
                async with asyncio.timeout(self._timeout_s):
                    finding, seconds = await self._receive()
                self._settle(finding, seconds)
                if self._is_worn():
                    log.info("child.replaced", pictures=self._answered)
                    self._listening = False
                    await self.process.end()
                    await self.start()
                    return
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError) as error:
            self._listening = False
            await self._lose(error)
        finally:
            self._listening = False

    async def _receive(self) -> tuple[Finding, float]:
        """The answer to the first question, and the seconds that it took. Raises OddAnswer, as ChildProcess does."""
        question = self._questions[0]
        answer = await self.process.receive(max_answer_bytes(question.request, question.files[0]))
        finding = answer.finding
        check(question.request, question.files[0], finding)
        self._count_usage(answer.computed_s - self._computed_s)
        self._computed_s = answer.computed_s
        self._answered += 1
        return finding, min(answer.seconds, self._timeout_s)

    def _is_worn(self) -> bool:
        if self._answered % _MEMORY_CHECK_PICTURES == 0 and self.process.resident_bytes() > _MAX_KEPT_BYTES:
            return True
        return self._answered >= _MAX_PICTURES or self._computed_s >= MAX_CPU_S

    async def _lose(self, error: Exception) -> None:
        """End the process, and blame the picture that it worked on, unless it was the disk."""
        computed_s = self.process.computed_s()
        waiting_share = _LOWERED_WAITING_SHARE if self.process.is_lowered else _WAITING_SHARE
        said = self.process.last_words()
        exit_code = await self.process.end()
        idle = computed_s is not None and computed_s - self._computed_s < waiting_share * self._timeout_s
        # A mapped file that the disk does not give ends the process so.
        waited = (isinstance(error, TimeoutError) and idle) or exit_code == -signal.SIGBUS
        asking = self._questions[0].context
        if waited:
            asking.run(log.warning, "child.waited", exit_code=exit_code, said=said)
            self._settle(ChildWaited("it waited for the disk or a core"), time.monotonic() - self._began)
        else:
            metrics.child_crashes.inc()
            cause = f"{type(error).__name__}: {error}" if isinstance(error, OddAnswer) else type(error).__name__
            asking.run(log.warning, "child.lost", cause=cause, exit_code=exit_code, said=said)
            self._count_usage(time.monotonic() - self._began)
            self._settle(ChildLost(), time.monotonic() - self._began)

    def _count_usage(self, seconds: float) -> None:
        """Within what the worker allows, whatever the child says."""
        self._questions[0].usage.seconds += min(max(0.0, seconds), self._timeout_s)

    def _settle(self, finding: Finding | Exception, seconds: float | None = None) -> None:
        question = self._questions.popleft()
        self._began = time.monotonic()
        future = question.finding
        if not future.done():  # else nobody waits any more
            if isinstance(finding, Exception):
                future.set_exception(finding)
            else:
                future.set_result(finding)
        if seconds is not None:
            self._note(seconds, question.account)
            self._free()
