"""Places that many share, e.g. for work that is under way: no one of them takes all, however early it comes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping


class Full(Exception):
    """All places are taken."""


class OverShare(Exception):
    """`holder` has its share of the places already."""

    def __init__(self, holder: Hashable) -> None:
        super().__init__(holder)
        self.holder = holder


class SharedPlaces:
    """Each place is held for one or more holders, e.g. an address and an account, each with a weight.

    A holder may take places, as many as it needs, while it holds less than its weight times the places that are free
    (dynamic thresholds, Choudhury and Hahne 1998). So a holder of weight 1 takes at most half of all places while it is
    alone, and what it took last, and less beside others. One that holds nothing gets what it needs until all are taken.
    """

    def __init__(self, total: int) -> None:
        self.taken = 0
        self._total = total
        self._held: Counter[Hashable] = Counter()  # of those that hold any

    @property
    def free(self) -> int:
        return self._total - self.taken

    def require(self, weights: Mapping[Hashable, float]) -> None:
        """Raises Full, or OverShare for the first holder that may not take a place."""
        free = self.free
        if free <= 0:
            raise Full
        for holder, weight in weights.items():
            held = self._held.get(holder, 0)
            if held and held >= weight * free:
                raise OverShare(holder)

    def take(self, weights: Mapping[Hashable, float], count: int = 1) -> None:
        """Raises what `require` does."""
        self.require(weights)
        self.taken += count
        for holder in weights:
            self._held[holder] += count

    def release(self, weights: Mapping[Hashable, float], count: int = 1) -> None:
        """Free as many places as were taken with the same holders."""
        self.taken -= count
        for holder in weights:
            self._held[holder] -= count
            if not self._held[holder]:
                del self._held[holder]
