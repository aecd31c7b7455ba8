"""The pool of decoders, which probes and renders pictures for the rest of the worker. Its dispatcher is fair."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import structlog

from service.images.probe import Probe, Rejected
from service.renditions.transformation import Transformation
from service.telemetry.metrics import Durations, metrics
from worker.sandbox.decoder import DEFAULT_LIMITS, Decoder, DecoderLimits, PendingRequest, Usage
from worker.sandbox.files import CandidatePaths, PictureFiles
from worker.sandbox.messages import (
    MAX_GROUP,
    LocationRequest,
    Patches,
    ProbeRequest,
    ReadError,
    Rejection,
    Rendered,
    RenderRequest,
    Request,
    Result,
)
from worker.sandbox.process import DecoderStalled, ReadStalled

log = structlog.get_logger("worker")

# A decoder gets requests for this much time in advance. Some milliseconds hide the round trip to the worker; more
# requests are better left to other workers.
_PREFETCH_S = 0.02
MAX_PREFETCH = 2 * MAX_GROUP  # it works on one group while the next one is on its way
_MEAN_WEIGHT = 1 / 8
_MAX_RESULT_WAIT_S = 0.008

_Expected = TypeVar("_Expected", Probe, Rendered, Patches)
# An account is slow after a picture that took this long, for `SLOW_FOR_S`.
SLOW_S = 2.0
SLOW_FOR_S = 60.0
_MAX_SLOW_ACCOUNTS = 100


class DecoderPool:
    """A fixed number of decoders. Each has some requests in advance, so that it never waits for the worker.

    Pictures are passed as open files; `is_local` means that these are on a local disk. `durations` observes the seconds
    of each request, by default as those of probes. An account gets at most `share` of the decoders, by default all.
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
        limits: DecoderLimits = DEFAULT_LIMITS,
        slow: SlowAccounts | None = None,
        is_local: bool = False,
    ) -> None:
        self.decoders = [
            Decoder(
                timeout_s, on_duration=self.record_duration, on_idle=self._dispatch, niceness=niceness, limits=limits
            )
            for _ in range(count)
        ]
        self.files = PictureFiles(timeout_s, is_local=is_local)
        self._durations = durations or metrics.probe_seconds
        self._slow = slow or SlowAccounts()
        self._share = count if share is None else share
        self._dispatcher = Dispatcher(self.decoders, self._share, self._slow)
        self._max_pixels = max_pixels
        self._mean_s = _PREFETCH_S
        self._unfinished = 0  # requests, also those that wait for their file or for a decoder

    @property
    def prefetch(self) -> int:
        """The maximum requests of one decoder at a time: as many as recently took `_PREFETCH_S`."""
        return min(MAX_PREFETCH, max(1, round(_PREFETCH_S / self._mean_s)))

    @property
    def in_flight(self) -> int:
        return sum(decoder.in_flight for decoder in self.decoders)

    def choose_result_wait_s(self) -> float:
        """Returns how long a result should wait for others, to be written together: no longer than each decoder has
        other pictures to work on, because clients send their next ones only after their results.
        """
        pictures_each = self._unfinished / self._share
        return min(_MAX_RESULT_WAIT_S, max(0, pictures_each - 1) * self._mean_s)

    async def start(self) -> None:
        """Starts all processes, so that the first picture does not wait for one. Raises DecoderUnavailable."""
        await asyncio.gather(*(decoder.start() for decoder in self.decoders))
        if missing := {part for decoder in self.decoders for part in decoder.missing}:
            log.warning("sandbox.incomplete", missing=sorted(missing))

    def slow_accounts(self) -> Collection[str]:
        """Returns the accounts with a picture that takes long, or recently took long."""
        return self._dispatcher.slow_accounts()

    async def probe(self, *paths: str, account: str = "") -> Probe:
        """Probes the file at the first of the paths that exists.

        Raises Rejected, DecoderFailed, DecoderUnavailable, and FileNotFoundError if none exists, as the other methods
        do.
        """
        return await self._request(Probe, ProbeRequest(self._max_pixels), paths, account=account)

    async def render(
        self,
        paths: CandidatePaths,
        transformation: Transformation,
        watermark_paths: CandidatePaths | None = None,
        *,
        sizes: Sequence[int] = (),
        account: str = "",
        usage: Usage | None = None,
    ) -> bytes:
        """Returns the file of a rendition, and adds its seconds to `usage`.

        Also raises SizeMismatch, if the size of the picture or of its watermark differs from that in `sizes`.
        """
        pictures = (paths,) if watermark_paths is None else (paths, watermark_paths)
        request = RenderRequest(transformation, self._max_pixels)
        return (await self._request(Rendered, request, *pictures, sizes=sizes, account=account, usage=usage)).data

    async def find_locations(
        self, paths: CandidatePaths, *, size: int = 0, account: str = ""
    ) -> Sequence[tuple[int, bytes]]:
        """Returns offsets, and the bytes to write there over a copy of the file so that it contains no location.

        Also raises SizeMismatch.
        """
        return (await self._request(Patches, LocationRequest(), paths, sizes=(size,), account=account)).patches

    async def _request(
        self,
        kind: type[_Expected],
        request: Request,
        *pictures: CandidatePaths,
        account: str,
        sizes: Sequence[int] = (),
        usage: Usage | None = None,
    ) -> _Expected:
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        is_alone = not isinstance(request, ProbeRequest)
        self._unfinished += 1
        try:
            async with self.files.open(*pictures, sizes=sizes) as files:
                self._dispatcher.add(PendingRequest(request, files, future, usage or Usage(), account, is_alone))
                self._dispatch()
                return _unwrap(await future, kind)
        except ReadStalled as error:
            if await self.files.can_read(*pictures):
                raise DecoderStalled(str(error)) from error
            raise
        finally:
            self._unfinished -= 1

    async def close(self) -> None:
        self._dispatcher.close()
        await asyncio.gather(*(decoder.close() for decoder in self.decoders))
        self.files.close()

    def record_duration(self, seconds: float, account: str = "") -> None:
        self._durations.observe(seconds)
        self._mean_s += _MEAN_WEIGHT * (seconds - self._mean_s)
        self._slow.record(account, seconds)

    def _dispatch(self) -> None:
        while (turn := self._dispatcher.take(self.prefetch)) is not None:
            pending, decoder = turn
            if not pending.result.done():  # it was cancelled
                decoder.submit(pending)


def _unwrap(result: Result, kind: type[_Expected]) -> _Expected:
    match result:
        case Rejection(code, name):
            raise Rejected(code, name)
        case ReadError(cause):
            raise ReadStalled(cause)
    assert isinstance(result, kind)  # noqa: S101 - the decoder has checked it
    return result


class SlowAccounts:
    """The accounts of the latest slow pictures, at most 100."""

    def __init__(
        self, slow_s: float = SLOW_S, slow_for_s: float = SLOW_FOR_S, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._slow_s = slow_s
        self._slow_for_s = slow_for_s
        self._expiries: OrderedDict[str, float] = OrderedDict()  # the first one first

    def record(self, account: str, seconds: float) -> None:
        """Records how long a picture of the account has taken."""
        if seconds >= self._slow_s:
            self._expiries[account] = self._clock() + self._slow_for_s
            self._expiries.move_to_end(account)
            if len(self._expiries) > _MAX_SLOW_ACCOUNTS:
                self._expiries.popitem(last=False)

    def current(self) -> Collection[str]:
        now = self._clock()
        while self._expiries and next(iter(self._expiries.values())) <= now:
            self._expiries.popitem(last=False)
        return self._expiries.keys()


class Dispatcher:
    """A queue with round robin: each turn of an account serves one request.

    An account gets at most `share` of the decoders, and all slow accounts get one share together: a picture that is
    being decoded cannot be interrupted. No request waits behind one of another account in the same decoder. So a
    decoder is always left for quick pictures.
    """

    def __init__(self, decoders: Sequence[Decoder], share: int, slow: SlowAccounts) -> None:
        self._decoders = decoders
        self._share = share
        self._slow = slow
        self._queues: OrderedDict[str, deque[PendingRequest]] = OrderedDict()  # the account with the next turn first
        self._is_closed = False

    def add(self, pending: PendingRequest) -> None:
        if self._is_closed:
            pending.result.cancel()
            return
        self._queues.setdefault(pending.account, deque()).append(pending)

    def slow_accounts(self) -> Collection[str]:
        """Returns the slow accounts, including those of current pictures, and lowers the priority of their decoders."""
        for decoder in self._decoders:
            if decoder.account is not None:
                self._slow.record(decoder.account, decoder.current_s)
        slow = self._slow.current()
        for decoder in self._decoders:
            if decoder.account in slow:
                decoder.process.lower_priority()
        return slow

    def take(self, prefetch: int) -> tuple[PendingRequest, Decoder] | None:
        """Returns the next request and its decoder, or None if no decoder may get one.

        A decoder has at most `prefetch` requests at a time.
        """
        if not self._queues:
            return None
        free = [decoder for decoder in self._decoders if decoder.has_room(prefetch)]
        if not free:
            return None
        slow = self.slow_accounts()
        busy = Counter(decoder.account for decoder in self._decoders if decoder.account is not None)
        busy_with_slow = sum(busy[account] for account in slow)
        for account in self._queues:
            has_room = (busy_with_slow if account in slow else busy[account]) < self._share
            accounts = {account, None} if has_room else {account}
            candidates = [decoder for decoder in free if decoder.account in accounts]
            if candidates:
                is_slow = account in slow
                decoder = min(candidates, key=lambda decoder: _rank(decoder, is_slow=is_slow))
                pending = self._pop(account)
                if is_slow:
                    decoder.process.lower_priority()
                    pending.is_alone = True
                return pending, decoder
        return None

    def close(self) -> None:
        """Cancels all queued requests, and later ones: their files may have been opened meanwhile."""
        self._is_closed = True
        for queue in self._queues.values():
            for pending in queue:
                pending.result.cancel()
        self._queues.clear()

    def _pop(self, account: str) -> PendingRequest:
        queue = self._queues[account]
        pending = queue.popleft()
        if queue:
            self._queues.move_to_end(account)
        else:
            del self._queues[account]
        return pending


def _rank(decoder: Decoder, *, is_slow: bool) -> tuple[bool, bool, int, bool]:
    """Returns a sort key. The lowest is the best decoder for a slow account, or for another one."""
    process = decoder.process
    return decoder.is_backing_off, process.has_low_priority != is_slow, decoder.in_flight, process.pid is None
