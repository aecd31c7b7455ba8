"""The children of a worker: each picture goes to the one that has the least to do."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import TypeVar

import structlog

from service.images.probe import Probe, Rejected
from service.renditions.transformation import Transformation
from service.telemetry.metrics import Durations, metrics
from worker.sandbox.decoder import Child, Question, Usage
from worker.sandbox.files import PictureFiles, Places
from worker.sandbox.messages import (
    Finding,
    LocationRequest,
    Patches,
    ProbeRequest,
    Refusal,
    Rendered,
    RenderRequest,
    Request,
    Unreadable,
)
from worker.sandbox.process import ChildStalled, ChildWaited
from worker.sandbox.waiting_line import Line

log = structlog.get_logger("worker")

# A child has this much work ahead: some milliseconds hide the way to the worker and back, and more of it could be done
# by another worker.
_AHEAD_S = 0.02
MOST_AHEAD = 4
_MEAN_WEIGHT = 1 / 8

_Expected = TypeVar("_Expected", Probe, Rendered, Patches)


class Children:
    """A fixed number of children, each given some pictures ahead, so that none waits for the worker in between.

    They get each picture as an open file. `durations` counts the seconds that each took, as those of probes if there
    is none. An account gets at most `share` of them, by default all.
    """

    def __init__(
        self,
        count: int,
        *,
        max_pixels: int,
        timeout_s: float,
        share: int | None = None,
        durations: Durations | None = None,
        niceness: int = 0,
    ) -> None:
        self._all = [Child(timeout_s, note=self._note, free=self._hand_out, niceness=niceness) for _ in range(count)]
        self._files = PictureFiles(timeout_s)
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
        return await self._ask(Probe, ProbeRequest(self._max_pixels), paths, account=account)

    async def render(
        self,
        paths: Places,
        transformation: Transformation,
        watermark_paths: Places | None = None,
        *,
        sizes: Sequence[int] = (),
        account: str = "",
        usage: Usage | None = None,
    ) -> bytes:
        """The file of a rendition. Its seconds are added to `usage`.

        Raises OtherSize too, if the picture or its watermark does not have its size of `sizes`.
        """
        pictures = (paths,) if watermark_paths is None else (paths, watermark_paths)
        request = RenderRequest(transformation, self._max_pixels)
        return (await self._ask(Rendered, request, *pictures, sizes=sizes, account=account, usage=usage)).data

    async def find_locations(self, paths: Places, *, size: int = 0, account: str = "") -> Sequence[tuple[int, bytes]]:
        """What to write over a copy of the file, so that it tells no location: offsets and bytes.

        Raises OtherSize too.
        """
        return (await self._ask(Patches, LocationRequest(), paths, sizes=(size,), account=account)).patches

    async def _ask(
        self,
        kind: type[_Expected],
        request: Request,
        *pictures: Places,
        account: str,
        sizes: Sequence[int] = (),
        usage: Usage | None = None,
    ) -> _Expected:
        future: asyncio.Future[Finding] = asyncio.get_running_loop().create_future()
        async with self._files.opened(*pictures, sizes=sizes) as files:
            self._line.add(Question(request, files, future, usage or Usage(), account))
            self._hand_out()
            try:
                return _accept(await future, kind)
            except ChildWaited as error:
                if await self._files.can_read(*pictures):
                    raise ChildStalled(str(error)) from error
                raise

    async def end(self) -> None:
        self._line.clear()
        await asyncio.gather(*(child.end() for child in self._all))
        self._files.close()

    def _note(self, seconds: float, account: str = "") -> None:
        self._durations.observe(seconds)
        self._mean_s += _MEAN_WEIGHT * (seconds - self._mean_s)
        self._line.note(account, seconds)

    def _hand_out(self) -> None:
        while (turn := self._line.take(self.ahead)) is not None:
            question, child = turn
            if not question.finding.done():  # else nobody waits any more
                child.ask(question)


def _accept(finding: Finding, kind: type[_Expected]) -> _Expected:
    match finding:
        case Refusal(code, name):
            raise Rejected(code, name)
        case Unreadable(cause):
            raise ChildWaited(cause)
    assert isinstance(finding, kind)  # noqa: S101 - it was checked when it came
    return finding
