"""Fair shares: an account gets at most its share of the decoders and of a worker's jobs.

A picture that is being decoded cannot be interrupted. So the accounts whose pictures take long count as one group with
one share, however many they are: what is left serves quick pictures of other accounts.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

_SLOW_GROUP = "slow"
# An account is slow from a picture that took this long, and for some time after it.
SLOW_S = 2.0
SLOW_FOR_S = 60.0
_MAX_SLOW_ACCOUNTS = 100


def group_of(account: str, slow: Collection[str]) -> str:
    return _SLOW_GROUP if account in slow else account


def count_by_group(counts: Mapping[str, int], slow: Collection[str]) -> Counter[str]:
    """Returns the sums of the accounts' counts by group."""
    groups: Counter[str] = Counter()
    for account, count in counts.items():
        groups[group_of(account, slow)] += count
    return groups


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
        """Record how long a picture of the account has taken."""
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


@dataclass(frozen=True, slots=True)
class ClaimLimits:
    """How many more jobs each account may get: `share`, except for accounts in `groups`, as (account, group, room).
    The accounts of a group share its room.
    """

    share: int
    groups: Sequence[tuple[str, str, int]] = ()

    @property
    def full_accounts(self) -> frozenset[str]:
        return frozenset(account for account, _, room in self.groups if room <= 0)


class AccountShares:
    """Counts the jobs of one worker by account, and returns how many more it should claim.

    An account, or the slow accounts together, may have `share` jobs, and the other accounts `spare` more. The values
    change with the speed of the pictures, so all three parameters are functions. Jobs are claimed in groups: a share
    has no room until half of it is free.
    """

    def __init__(
        self,
        share: Callable[[], int],
        spare: Callable[[], int] = lambda: 0,
        slow: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self._share = share
        self._spare = spare
        self._slow = slow
        self._jobs: Counter[str] = Counter()

    def add(self, account: str) -> None:
        self._jobs[account] += 1

    def remove(self, account: str) -> None:
        self._jobs[account] -= 1
        if not self._jobs[account]:
            del self._jobs[account]

    def free_slots(self) -> int:
        """Returns how many jobs to claim. An account with more than its share takes no room from others."""
        share, spare, total = self._share(), self._spare(), self._jobs.total()
        if 2 * total <= share:
            return share + spare - total
        largest = max(count_by_group(self._jobs, set(self._slow())).values())
        free = max(share, largest) + spare - total
        return free if spare and 2 * free >= spare else 0

    def claim_limits(self) -> ClaimLimits:
        share, slow = self._share(), set(self._slow())
        counts = count_by_group(self._jobs, slow)
        return ClaimLimits(
            share,
            [
                (account, group, share - counts[group] if 2 * counts[group] <= share else 0)
                for account in self._jobs.keys() | slow
                for group in [group_of(account, slow)]
            ],
        )
