"""A bounded cache in memory whose entries expire; the least recently used entry is evicted first."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

# How long a process caches what it read from the database, e.g. the account of an API key. A change in the database,
# such as a revoked key, takes effect in every process within this time.
LOOKUP_TTL_S = 4.0

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Entry(NamedTuple, Generic[Value]):
    """`expires_at` is a time of the cache's clock, the monotonic one by default."""

    value: Value
    expires_at: float
    weight: int = 1


class ExpiringCache(Generic[Key, Value]):
    """Holds entries up to a total of `max_weight`. An entry weighs 1 unless `put` gets another weight.

    `on_remove` is called for each entry that is removed, except by `clear`.
    """

    def __init__(
        self,
        max_weight: int,
        *,
        on_remove: Callable[[Key, Value], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_weight = max_weight
        self._clock = clock
        self._weight = 0
        self._on_remove = on_remove
        self._entries: OrderedDict[Key, Entry[Value]] = OrderedDict()  # the least recently used first

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Key) -> bool:
        """Whether there is an entry, expired or not. Does not count as a use."""
        return key in self._entries

    def get_entry(self, key: Key) -> Entry[Value] | None:
        """Returns the entry, or None if there is none or it has expired."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if self._clock() >= entry.expires_at:
            self.remove(key)
            return None
        self._entries.move_to_end(key)
        return entry

    def get(self, key: Key) -> Value | None:
        """Returns the value, or None if there is none or it has expired."""
        entry = self.get_entry(key)
        return None if entry is None else entry.value

    def put(self, key: Key, value: Value, expires_at: float = math.inf, *, weight: int = 1) -> Entry[Value]:
        """Adds or replaces an entry, and evicts others if the total weight is too large."""
        self.remove(key)
        entry = self._entries[key] = Entry(value, expires_at, weight)
        self._weight += weight
        while self._weight > self._max_weight:
            self.remove(next(iter(self._entries)))
        return entry

    def remove(self, key: Key) -> None:
        """Does nothing if there is no entry."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        self._weight -= entry.weight
        if self._on_remove is not None:
            self._on_remove(key, entry.value)

    def clear(self) -> None:
        self._entries.clear()
        self._weight = 0
