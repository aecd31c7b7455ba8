"""How many jobs of each account a worker takes, so that it has room for the jobs of others at any time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

# Accounts whose pictures take long share one room: several of them leave as much to others as one does.
_SLOW = "slow"


@dataclass(frozen=True, slots=True)
class Rooms:
    """How many jobs more the accounts may get: `share` each, but for those in `groups`, as (account, group, room).
    The accounts of a group share its room.
    """

    share: int
    groups: Sequence[tuple[str, str, int]] = ()

    @property
    def full(self) -> frozenset[str]:
        return frozenset(account for account, _, room in self.groups if room <= 0)


class Shares:
    """The jobs of one worker, by account.

    An account, or the slow accounts together, may have as many jobs as `share` says, and other accounts `spare` more.
    Jobs are claimed in groups: a share gives no room until half of it is free.
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

    def free(self) -> int:
        """How many jobs to claim; an account that has more than its share takes no room from others."""
        share, spare, total = self._share(), self._spare(), self._jobs.total()
        if 2 * total <= share:
            return share + spare - total
        largest = max(self._count(set(self._slow())).values())
        free = max(share, largest) + spare - total
        return free if spare and 2 * free >= spare else 0

    def rooms(self) -> Rooms:
        share, slow = self._share(), set(self._slow())
        counts = self._count(slow)
        return Rooms(
            share,
            [
                (account, group, share - counts[group] if 2 * counts[group] <= share else 0)
                for account in self._jobs.keys() | slow
                for group in [_SLOW if account in slow else account]
            ],
        )

    def _count(self, slow: Collection[str]) -> Counter[str]:
        """Jobs by group."""
        counts: Counter[str] = Counter()
        for account, jobs in self._jobs.items():
            counts[_SLOW if account in slow else account] += jobs
        return counts
