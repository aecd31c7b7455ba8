"""Places that many share: no holder takes all, and one that holds nothing gets one while any is free."""

from __future__ import annotations

import random
from collections.abc import Hashable

import pytest

from service.limits.shared_slots import Full, OverShare, SharedPlaces


def fill(places: SharedPlaces, holder: str, weight: float) -> int:
    """Take all that the holder may have."""
    taken = 0
    try:
        while True:
            places.take({holder: weight})
            taken += 1
    except (Full, OverShare):
        return taken


@pytest.mark.parametrize(("weight", "share"), [(1 / 3, 128), (1.0, 256), (3.0, 384)])
def test_lone_holder_gets_its_share(weight: float, share: int) -> None:
    assert fill(SharedPlaces(512), "a", weight) == share


def test_later_holders_still_get_places() -> None:
    places = SharedPlaces(512)
    shares = [fill(places, f"account {number}", 3.0) for number in range(4)]
    assert shares[0] == 384
    assert min(shares) > 0
    assert places.taken < 512


def test_newcomer_gets_the_last_place() -> None:
    places = SharedPlaces(2)
    assert fill(places, "a", 1 / 3) == 1
    assert fill(places, "b", 1 / 3) == 1
    with pytest.raises(Full):
        places.take({"c": 1.0})


def test_holder_over_its_share_is_named() -> None:
    places = SharedPlaces(8)
    fill(places, "address", 1 / 3)
    with pytest.raises(OverShare) as caught:
        places.take({"account": 3.0, "address": 1 / 3})
    assert caught.value.holder == "address"
    places.take({"account": 3.0, "other": 1 / 3})


def test_dear_work_takes_several_places() -> None:
    places = SharedPlaces(512)
    places.take({"a": 1 / 3}, 400)
    with pytest.raises(OverShare):
        places.take({"a": 1 / 3})
    places.take({"b": 1 / 3}, 400)  # it held nothing
    with pytest.raises(Full):
        places.take({"c": 1.0})
    places.release({"b": 1 / 3}, 400)
    places.take({"c": 1.0})


def test_released_places_are_free_again() -> None:
    places, chance = SharedPlaces(20), random.Random(1839)
    taken: list[tuple[dict[Hashable, float], int]] = []
    for _ in range(2000):
        weights: dict[Hashable, float] = {chance.choice("abc"): 1.0, chance.choice("xyz"): 3.0}
        count = chance.randrange(1, 5)
        try:
            places.take(weights, count)
            taken.append((weights, count))
        except (Full, OverShare):
            places.release(*taken.pop(chance.randrange(len(taken))))
    for held in taken:
        places.release(*held)
    assert places.taken == 0
    assert places._held == {}
