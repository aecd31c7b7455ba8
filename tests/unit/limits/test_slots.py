"""Shared slots: no holder takes all, and a holder without a slot gets one while any is free."""

from __future__ import annotations

import random
from collections.abc import Hashable

import pytest

from service.limits.slots import SharedSlots, ShareExceeded, SlotsFull


def fill(slots: SharedSlots, holder: str, weight: float) -> int:
    """Take all that the holder may have."""
    taken = 0
    try:
        while True:
            slots.acquire({holder: weight})
            taken += 1
    except (SlotsFull, ShareExceeded):
        return taken


@pytest.mark.parametrize(("weight", "share"), [(1 / 3, 128), (1.0, 256), (3.0, 384)])
def test_lone_holder_gets_its_share(weight: float, share: int) -> None:
    assert fill(SharedSlots(512), "a", weight) == share


def test_later_holders_still_get_slots() -> None:
    slots = SharedSlots(512)
    shares = [fill(slots, f"account {number}", 3.0) for number in range(4)]
    assert shares[0] == 384
    assert min(shares) > 0
    assert slots.taken < 512


def test_newcomer_gets_the_last_slot() -> None:
    slots = SharedSlots(2)
    assert fill(slots, "a", 1 / 3) == 1
    assert fill(slots, "b", 1 / 3) == 1
    with pytest.raises(SlotsFull):
        slots.acquire({"c": 1.0})


def test_holder_over_its_share_is_named() -> None:
    slots = SharedSlots(8)
    fill(slots, "address", 1 / 3)
    with pytest.raises(ShareExceeded) as caught:
        slots.acquire({"account": 3.0, "address": 1 / 3})
    assert caught.value.holder == "address"
    slots.acquire({"account": 3.0, "other": 1 / 3})


def test_expensive_work_takes_several_slots() -> None:
    slots = SharedSlots(512)
    slots.acquire({"a": 1 / 3}, 400)
    with pytest.raises(ShareExceeded):
        slots.acquire({"a": 1 / 3})
    slots.acquire({"b": 1 / 3}, 400)  # it held nothing
    with pytest.raises(SlotsFull):
        slots.acquire({"c": 1.0})
    slots.release({"b": 1 / 3}, 400)
    slots.acquire({"c": 1.0})


def test_released_slots_are_free_again() -> None:
    slots, chance = SharedSlots(20), random.Random(1839)
    taken: list[tuple[dict[Hashable, float], int]] = []
    for _ in range(2000):
        weights: dict[Hashable, float] = {chance.choice("abc"): 1.0, chance.choice("xyz"): 3.0}
        count = chance.randrange(1, 5)
        try:
            slots.acquire(weights, count)
            taken.append((weights, count))
        except (SlotsFull, ShareExceeded):
            slots.release(*taken.pop(chance.randrange(len(taken))))
    for held in taken:
        slots.release(*held)
    assert slots.taken == 0
    assert slots._held == {}
