"""Slots that many share, such as uploads in flight: no account or address holds all of them.

There are two policies. `SharedSlots` refuses a holder that has its share, and never takes a slot back: for work that
is worth finishing. `PreemptibleSlots` takes a slot from a slow transfer if another account needs it: for transfers,
whose length is up to the client. A transfer has a minimum pace, so that a slow client or origin holds a slot or a
connection for a bounded time.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Set

from service.errors import ServiceError
from service.ids import AccountId
from service.telemetry.metrics import InFlight

# A transfer may be slow for this long before it yields to others of its own account.
SLOW_AFTER_S = 5.0


class SlotsFull(Exception):
    """All slots are taken."""


class ShareExceeded(Exception):
    """`holder` has its share of the slots already."""

    def __init__(self, holder: Hashable) -> None:
        super().__init__(holder)
        self.holder = holder


class SharedSlots:
    """Each slot is held for one or more holders, e.g. an address and an account, each with a weight.

    A holder may acquire slots, as many as it needs, while it holds less than its weight times the free slots (dynamic
    thresholds, Choudhury and Hahne 1998). So a holder of weight 1 gets at most half of all slots while it is alone,
    plus what it acquired last, and less beside others. A holder without a slot gets what it needs if any slot is free.
    """

    def __init__(self, total: int) -> None:
        self.taken = 0
        self._total = total
        self._held: Counter[Hashable] = Counter()  # of holders with at least one slot

    @property
    def free(self) -> int:
        return self._total - self.taken

    def check(self, weights: Mapping[Hashable, float]) -> None:
        """Raises SlotsFull, or ShareExceeded for the first holder that may not acquire a slot."""
        free = self.free
        if free <= 0:
            raise SlotsFull
        for holder, weight in weights.items():
            held = self._held.get(holder, 0)
            if held and held >= weight * free:
                raise ShareExceeded(holder)

    def acquire(self, weights: Mapping[Hashable, float], count: int = 1) -> None:
        """Takes `count` slots. Raises what `check` does."""
        self.check(weights)
        self.taken += count
        for holder in weights:
            self._held[holder] += count

    def release(self, weights: Mapping[Hashable, float], count: int = 1) -> None:
        """Frees slots that were acquired for the same holders."""
        self.taken -= count
        for holder in weights:
            self._held[holder] -= count
            if not self._held[holder]:
                del self._held[holder]


class PreemptibleSlot:
    """The slot of one transfer, whose speed `pace` measures. It is entered for as long as the transfer lasts."""

    __slots__ = ("_is_preempted", "_task", "account_id", "pace")

    def __init__(self, account_id: AccountId, pace: Pace) -> None:
        self.account_id = account_id
        self.pace = pace
        self._task: asyncio.Task[object] | None = None
        self._is_preempted = False

    @property
    def is_active(self) -> bool:
        return self._task is not None and not self._is_preempted

    def __enter__(self) -> None:
        """Until it is left, another transfer may take the slot: the block is cancelled then, and `busy` is raised."""
        self._task = asyncio.current_task()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        task, self._task = self._task, None
        if self._is_preempted and kind is asyncio.CancelledError and task is not None and task.uncancel() == 0:
            raise ServiceError("busy") from None

    def preempt(self) -> None:
        """Ends the transfer, which is active."""
        assert self._task is not None  # noqa: S101 - it is active
        self._is_preempted = True
        self._task.cancel()


class PreemptibleSlots:
    """`total` slots of one process, shared by account. `gauge` shows how many are taken.

    1. An account holds at most three quarters of the slots.
    2. If all are taken, an account gets the slot of another account that holds at least two more. The account that
       holds most yields first, and of its transfers the slowest.
    3. An account that may hold no more replaces a transfer of its own that is slower than the minimum pace.

    So an account gets a slot as long as another account holds at least two more and has an active transfer. A transfer
    that has ended keeps its slot until its request is answered; with such transfers alone no account can hold more than
    its three quarters.
    """

    def __init__(self, total: int, gauge: InFlight, *, slow_after_s: float = SLOW_AFTER_S) -> None:
        self.by_account: dict[AccountId, set[PreemptibleSlot]] = {}
        self._total = total
        self._share = total - total // 4
        self._gauge = gauge
        self._slow_after_s = slow_after_s
        self._taken = 0

    def acquire(self, account_id: AccountId, pace: Pace) -> PreemptibleSlot:
        """Returns a slot for a transfer of the account, to be released. Raises `busy`."""
        own: Set[PreemptibleSlot] = self.by_account.get(account_id, frozenset())
        if len(own) >= self._share:
            self._replace(self._find_slow(own))
        elif self._taken >= self._total:
            self._replace(self._find_yielding(len(own)) or self._find_slow(own))
        slot = PreemptibleSlot(account_id, pace)
        self.by_account.setdefault(account_id, set()).add(slot)
        self._taken += 1
        self._gauge.inc()
        return slot

    def release(self, slot: PreemptibleSlot) -> None:
        """Does nothing for a slot that was preempted, since it is released already."""
        held = self.by_account.get(slot.account_id, set())
        if slot not in held:
            return
        held.remove(slot)
        if not held:
            del self.by_account[slot.account_id]
        self._taken -= 1
        self._gauge.dec()

    def _find_yielding(self, own: int) -> PreemptibleSlot | None:
        """Returns a slot that yields to an account with `own` slots.

        Its account holds at least two more, so that two accounts never preempt each other in turn.
        """
        for slots in sorted(self.by_account.values(), key=len, reverse=True):
            if len(slots) < own + 2:
                return None
            if (slot := _find_slowest(slots)) is not None:
                return slot
        return None

    def _find_slow(self, slots: Iterable[PreemptibleSlot]) -> PreemptibleSlot | None:
        return _find_slowest(
            slot
            for slot in slots
            if slot.pace.waited_s > self._slow_after_s and slot.pace.bytes_per_s < MIN_BYTES_PER_S
        )

    def _replace(self, slot: PreemptibleSlot | None) -> None:
        if slot is None:
            raise ServiceError("busy")
        slot.preempt()
        self.release(slot)


def _find_slowest(slots: Iterable[PreemptibleSlot]) -> PreemptibleSlot | None:
    """Returns the active transfer with the lowest average speed; of several, the one with the longest wait."""
    active = [slot for slot in slots if slot.is_active]
    return min(active, key=lambda slot: (slot.pace.bytes_per_s, -slot.pace.waited_s), default=None)


MIN_BYTES_PER_S = 1024
# A transfer may be slower for this long, e.g. at its beginning or in a pause.
GRACE_S = 30.0


class Pace:
    """How many bytes a transfer has moved, and how long this side has waited for them.

    Only waits for the other side count, so a slow disk here does not end a transfer. Times are of the monotonic clock.
    """

    __slots__ = ("_grace_s", "_waited_s", "_waiting_since", "size")

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self.size = 0
        self._grace_s = grace_s
        self._waited_s = 0.0
        self._waiting_since: float | None = None

    @property
    def waited_s(self) -> float:
        return self._waited_s + (0.0 if self._waiting_since is None else time.monotonic() - self._waiting_since)

    @property
    def remaining_s(self) -> float:
        """For how long nothing may move until the transfer is too slow, or 0 if it is too slow already."""
        return max(0.0, max(self._grace_s, self.size / MIN_BYTES_PER_S) - self.waited_s)

    @property
    def bytes_per_s(self) -> float:
        """The average so far. The first second counts as a whole one, since a burst says little."""
        return self.size / max(1.0, self.waited_s)

    def start_wait(self) -> None:
        """Does nothing if this side waits already."""
        if self._waiting_since is None:
            self._waiting_since = time.monotonic()

    def end_wait(self, count: int) -> None:
        """Counts `count` bytes that moved meanwhile."""
        if self._waiting_since is not None:
            self._waited_s += time.monotonic() - self._waiting_since
            self._waiting_since = None
        self.size += count
