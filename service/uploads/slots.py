"""The places of bodies under way, shared by account: no account takes them all, and a slow body yields to others.

Three rules. An account holds at most three quarters of the places. If all are taken, an account gets the place of a
body of an account that holds at least two more; the account that holds most yields first, and of its bodies the
slowest. An account that may hold no more replaces a body of its own that is slower than the least pace.

So an account gets a place as long as another one holds at least two more and has a body that is still arriving. A body
that has arrived keeps its place until its request is answered; with such bodies alone no account can take more than its
three quarters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Set

from service.errors import ServiceError
from service.ids import AccountId
from service.limits.pace import MIN_BYTES_PER_S, Pace
from service.telemetry.metrics import InFlight

# A body is given so long before it yields to others of its own account.
_SLOW_AFTER_S = 5.0


class Place:
    """The place of one body, whose own `pace` is. It is entered for as long as the body arrives."""

    __slots__ = ("_is_lost", "_task", "account_id", "pace")

    def __init__(self, account_id: AccountId, pace: Pace) -> None:
        self.account_id = account_id
        self.pace = pace
        self._task: asyncio.Task[object] | None = None
        self._is_lost = False

    @property
    def is_arriving(self) -> bool:
        return self._task is not None and not self._is_lost

    @property
    def is_slow(self) -> bool:
        return self.pace.waited_s > _SLOW_AFTER_S and self.pace.bytes_per_s < MIN_BYTES_PER_S

    def __enter__(self) -> None:
        """While the body arrives, another may take the place: the block is cancelled then, and `busy` raised."""
        self._task = asyncio.current_task()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        task, self._task = self._task, None
        if self._is_lost and kind is asyncio.CancelledError and task is not None and task.uncancel() == 0:
            raise ServiceError("busy") from None

    def lose(self) -> None:
        """End the body, which is arriving."""
        assert self._task is not None  # noqa: S101 - it is arriving
        self._is_lost = True
        self._task.cancel()


class Places:
    """`count` places of one process; `gauge` shows how many are taken."""

    def __init__(self, count: int, gauge: InFlight) -> None:
        self._count = count
        self._share = count - count // 4
        self._gauge = gauge
        self._taken = 0
        self._by_account: dict[AccountId, set[Place]] = {}

    def take(self, account_id: AccountId, pace: Pace) -> Place:
        """A place for a body of the account, to be given back. Raises `busy`."""
        own: Set[Place] = self._by_account.get(account_id, frozenset())
        if len(own) >= self._share:
            self._replace(_slowest(place for place in own if place.is_slow))
        elif self._taken >= self._count:
            self._replace(self._find_yielding(len(own)) or _slowest(place for place in own if place.is_slow))
        place = Place(account_id, pace)
        self._by_account.setdefault(account_id, set()).add(place)
        self._taken += 1
        self._gauge.inc()
        return place

    def give_back(self, place: Place) -> None:
        """A place that was lost to another has been given back already."""
        held = self._by_account.get(place.account_id, set())
        if place not in held:
            return
        held.remove(place)
        if not held:
            del self._by_account[place.account_id]
        self._taken -= 1
        self._gauge.dec()

    def _find_yielding(self, own: int) -> Place | None:
        """A body that yields to an account with `own` places: two fewer, so that the two never take turns at one."""
        for places in sorted(self._by_account.values(), key=len, reverse=True):
            if len(places) < own + 2:
                return None
            if (place := _slowest(places)) is not None:
                return place
        return None

    def _replace(self, place: Place | None) -> None:
        if place is None:
            raise ServiceError("busy")
        place.lose()
        self.give_back(place)


def _slowest(places: Iterable[Place]) -> Place | None:
    """Of those whose bodies are arriving; of several that are as slow, the one that has been waited for longest."""
    arriving = [place for place in places if place.is_arriving]
    return min(arriving, key=lambda place: (place.pace.bytes_per_s, -place.pace.waited_s), default=None)
