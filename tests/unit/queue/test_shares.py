"""How many jobs of each account a worker takes."""

from __future__ import annotations

from worker.queue.shares import Shares


def full_with(shares: Shares, *accounts: str) -> list[str]:
    for account in accounts:
        shares.add(account)
    return sorted(shares.rooms().full)


def test_one_account_fills_its_share_in_groups() -> None:
    shares = Shares(lambda: 4, lambda: 2)
    assert (shares.free(), shares.rooms().share) == (6, 4)
    assert full_with(shares, "1", "1") == []
    assert shares.rooms().groups == [("1", "1", 2)]
    assert full_with(shares, "1") == ["1"]
    shares.remove("1")
    assert shares.rooms().groups == [("1", "1", 2)]


def test_a_full_share_leaves_room_for_others() -> None:
    shares = Shares(lambda: 4, lambda: 2)
    assert full_with(shares, "1", "1", "1", "1") == ["1"]
    assert shares.free() == 2
    assert full_with(shares, "2") == ["1"]
    assert shares.free() == 1
    assert full_with(shares, "3") == ["1"]
    assert shares.free() == 0


def test_excess_of_a_share_leaves_room_for_others() -> None:
    """It had more room when its jobs were claimed: its pictures were quick then."""
    share = 10
    shares = Shares(lambda: share, lambda: 2)
    full_with(shares, *["1"] * 10)
    share = 3
    assert shares.free() == 2


def test_slow_accounts_share_one_room() -> None:
    slow = {"1", "2", "9"}
    shares = Shares(lambda: 4, lambda: 2, lambda: slow)
    assert full_with(shares, "1", "2", "2", "3") == ["1", "2", "9"]
    assert ("3", "3", 3) in shares.rooms().groups
    assert shares.free() == 2


def test_without_spare_places_half_of_all_are_free_first() -> None:
    shares = Shares(lambda: 4)
    assert full_with(shares, "1", "2") == []
    assert shares.free() == 2
    shares.add("3")
    assert shares.free() == 0
