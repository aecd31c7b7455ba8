"""The children of a worker: each picture goes to the one that has the least to do."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Collection, Sequence
from pathlib import Path

import structlog

from service.delivery.transformations import Transformation
from service.errors import CATALOGUE
from service.probes import Probe, Rejected
from service.telemetry.metrics import Durations, metrics
from worker.children.child import Child, Question
from worker.children.line import Line
from worker.children.messages import (
    Finding,
    LocationRequest,
    Missing,
    Patches,
    Present,
    ProbeRequest,
    Refusal,
    Rendered,
    RenderRequest,
    Request,
    Unreadable,
)
from worker.children.process import ChildUnavailable

log = structlog.get_logger("worker")

# A child has this much work ahead: some milliseconds hide the way to the worker and back, and more of it could be done
# by another worker.
_AHEAD_S = 0.02
MOST_AHEAD = 4
_MEAN_WEIGHT = 1 / 8


class Children:
    """A fixed number of children, each given some pictures ahead, so that none waits for the worker in between.

    Their pictures lie in `storage`: they can read no other. `durations` counts the seconds that each took,
    as those of probes if there is none. An account gets at most `share` of them, by default all.
    """

    def __init__(
        self,
        count: int,
        *,
        storage: Path,
        max_pixels: int,
        timeout_s: float,
        share: int | None = None,
        durations: Durations | None = None,
        niceness: int = 0,
    ) -> None:
        self._all = [
            Child(storage, timeout_s, note=self._note, free=self._hand_out, niceness=niceness) for _ in range(count)
        ]
        self._durations = durations or metrics.probe_seconds
        self._line = Line(self._all, count if share is None else share)
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
        if missing := {name for child in self._all for name in child.unconfined}:
            log.warning("children.not_confined", missing=sorted(missing))

    def slow_accounts(self) -> Collection[str]:
        """Accounts of which a picture takes long, or took long lately: together they get one share of the children."""
        return self._line.slow_accounts()

    async def probe(self, *paths: str, account: str = "") -> Probe:
        """Look at the file that lies at the first of these paths that is there.

        Raises Rejected, ChildLost, ChildUnavailable, or FileNotFoundError where none is; as the others do.
        """
        match await self._ask(ProbeRequest(paths, self._max_pixels), account):
            case Probe() as probe:
                return probe
            case finding:
                raise _disbelieve(finding)

    async def render(
        self,
        paths: Sequence[str],
        result: str,
        transformation: Transformation,
        watermark_paths: Sequence[str] = (),
        account: str = "",
    ) -> bytes | None:
        """The file of a rendition; None if it is there already, at `result`."""
        request = RenderRequest(paths, result, watermark_paths, transformation, self._max_pixels)
        match await self._ask(request, account):
            case Rendered(data):
                return data
            case Present():
                return None
            case finding:
                raise _disbelieve(finding)

    async def find_locations(self, paths: Sequence[str], result: str, account: str = "") -> Patches | None:
        """What to write over a copy of the file, so that it tells no location; None if that is there, at `result`."""
        match await self._ask(LocationRequest(paths, result), account):
            case Patches() as patches:
                return patches
            case Present():
                return None
            case finding:
                raise _disbelieve(finding)

    async def _ask(self, request: Request, account: str) -> Finding:
        future: asyncio.Future[Finding] = asyncio.get_running_loop().create_future()
        self._line.add(Question(request, future, account))
        self._hand_out()
        match await future:
            case Refusal(code, kind) if code in CATALOGUE:
                raise Rejected(code, kind)
            case Unreadable(cause):
                raise ChildUnavailable(cause)
            case Missing():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), request.paths[0])
            case finding:
                return finding

    async def end(self) -> None:
        self._line.clear()
        await asyncio.gather(*(child.end() for child in self._all))

    def _note(self, seconds: float, account: str = "") -> None:
        self._durations.observe(seconds)
        self._mean_s += _MEAN_WEIGHT * (seconds - self._mean_s)
        self._line.note(account, seconds)

    def _hand_out(self) -> None:
        while (turn := self._line.take(self.ahead)) is not None:
            question, child = turn
            if not question.finding.done():  # else nobody waits any more
                child.ask(question)


def _disbelieve(finding: Finding) -> ChildUnavailable:
    """An answer to another question: what a child has become is no reason to believe it."""
    return ChildUnavailable(f"it answers {type(finding).__name__}")
