"""Slots of shared resources, such as uploads in flight: no account or address can hold all of them.

There are two policies. `SharedSlots` refuses a holder that has its share, and never takes a slot back; it is for work
that should be finished. `PreemptibleSlots` takes a slot from a slow transfer if another account needs it; it is for
transfers, whose duration depends on the client. A transfer has a minimum pace, so that a slow client or origin holds a
slot or a connection for a bounded time.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Set

from service.errors import ServiceError
from service.ids import AccountId
from service.telemetry.metrics import InFlight

# A transfer may be slow for this long before another transfer of its own account can replace it.
SLOW_AFTER_S = 5.0


class SlotsFull(Exception):
    """All slots are taken."""


class ShareExceeded(Exception):
    """`holder` already has its share of the slots."""

    def __init__(self, holder: Hashable) -> None:
        super().__init__(holder)
        self.holder = holder


class SharedSlots:
    """Slots with weighted shares. A slot has one or more holders, e.g. an address and an account, each with a weight.

    A holder may acquire any number of slots while it holds less than its weight times the free slots (dynamic
    thresholds, Choudhury and Hahne 1998). So a single holder of weight 1 gets at most half of all slots plus its last
    acquisition, and less among others. A holder without a slot gets what it needs if any slot is free.
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
    """The slot of one transfer, whose speed `pace` measures. It is a context manager around the transfer."""

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
        """While the block runs, another transfer may take the slot: then the block is cancelled, and `busy` is
        raised.
        """
        self._task = asyncio.current_task()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        task, self._task = self._task, None
        if self._is_preempted and kind is asyncio.CancelledError and task is not None and task.uncancel() == 0:
            raise ServiceError("busy") from None

    def preempt(self) -> None:
        """Cancels the transfer, which must be active."""
        assert self._task is not None  # noqa: S101 - it is active
        self._is_preempted = True
        self._task.cancel()


class PreemptibleSlots:
    """`total` slots of one process, shared between accounts. `gauge` is the metric of the slots in use.

    1. An account holds at most three quarters of the slots.
    2. If all are taken, an account gets the slot of another account that holds at least two more. The account with the
       most slots yields first, and of its transfers the slowest.
    3. An account that may hold no more replaces a transfer of its own that is slower than the minimum pace.

    So an account gets a slot as long as another account holds at least two more and has an active transfer. A finished
    transfer keeps its slot until the response of its request; with such transfers no account can hold more than its
    three quarters.
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
        """Does nothing for a slot that was preempted, because it is already released."""
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
    """Measures how many bytes a transfer has moved, and how long this side has waited for them.

    Only waits for the other side count, so a slow local disk does not end a transfer. Times are from the monotonic
    clock.
    """

    __slots__ = ("_grace_s", "_waited_s", "_waiting_since", "size")

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self.size = 0
        self._grace_s = grace_s
        self._waited_s = 0.0
        self._waiting_since: float | None = None

    @property
    def waited_s(self) -> float:
        return self._waited_s + self.current_wait_s

    @property
    def current_wait_s(self) -> float:
        """How long this side has waited for the next bytes, or 0 if it does not wait."""
        return 0.0 if self._waiting_since is None else time.monotonic() - self._waiting_since

    @property
    def remaining_s(self) -> float:
        """The time after which the transfer is too slow if nothing moves, or 0 if it already is too slow."""
        return max(0.0, max(self._grace_s, self.size / MIN_BYTES_PER_S) - self.waited_s)

    @property
    def bytes_per_s(self) -> float:
        """The average speed. At least one second is assumed, because a short burst says little."""
        return self.size / max(1.0, self.waited_s)

    def start_wait(self) -> None:
        """Does nothing if this side already waits."""
        if self._waiting_since is None:
            self._waiting_since = time.monotonic()

    def end_wait(self, count: int) -> None:
        """Counts `count` bytes that moved meanwhile."""
        if self._waiting_since is not None:
            self._waited_s += time.monotonic() - self._waiting_since
            self._waiting_since = None
        self.size += count
