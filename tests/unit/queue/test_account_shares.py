"""An account gets at most its share, and slow accounts get one share together."""

from __future__ import annotations

from worker.queue.claims import AccountShares


def full_with(shares: AccountShares, *accounts: str) -> list[str]:
    for account in accounts:
        shares.add(account)
    return sorted(shares.claim_limits().full_accounts)


def test_share_has_room_when_half_of_it_is_free() -> None:
    shares = AccountShares(lambda: 4, lambda: 2)
    assert (shares.free_slots(), shares.claim_limits().share) == (6, 4)
    assert full_with(shares, "1", "1") == []
    assert shares.claim_limits().groups == [("1", "1", 2)]
    assert full_with(shares, "1") == ["1"]
    shares.remove("1")
    assert shares.claim_limits().groups == [("1", "1", 2)]


def test_full_share_leaves_room_for_others() -> None:
    shares = AccountShares(lambda: 4, lambda: 2)
    assert full_with(shares, "1", "1", "1", "1") == ["1"]
    assert shares.free_slots() == 2
    assert full_with(shares, "2") == ["1"]
    assert shares.free_slots() == 1
    assert full_with(shares, "3") == ["1"]
    assert shares.free_slots() == 0


def test_excess_jobs_take_no_room_of_others() -> None:
    """The share was larger when the jobs were claimed, because pictures were quick."""
    share = 10
    shares = AccountShares(lambda: share, lambda: 2)
    full_with(shares, *["1"] * 10)
    share = 3
    assert shares.free_slots() == 2


def test_slow_accounts_share_one_room() -> None:
    slow = {"1", "2", "9"}
    shares = AccountShares(lambda: 4, lambda: 2, lambda: slow)
    assert full_with(shares, "1", "2", "2", "3") == ["1", "2", "9"]
    assert ("3", "3", 3) in shares.claim_limits().groups
    assert shares.free_slots() == 2


def test_without_spare_half_must_be_free() -> None:
    shares = AccountShares(lambda: 4)
    assert full_with(shares, "1", "2") == []
    assert shares.free_slots() == 2
    shares.add("3")
    assert shares.free_slots() == 0
