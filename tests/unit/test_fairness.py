"""An account gets at most its share, and slow accounts get one share together."""

from __future__ import annotations

from worker.fairness import AccountShares, SlowAccounts, count_by_group


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


def test_slow_accounts_count_as_one_group() -> None:
    counts = count_by_group({"1": 2, "2": 3, "3": 1}, {"1", "2"})
    assert sorted(counts.values()) == [1, 5]
    assert counts["3"] == 1


def test_account_is_slow_for_a_while() -> None:
    now = 100.0
    slow = SlowAccounts(slow_s=1, slow_for_s=5, clock=lambda: now)
    slow.record("quick", 0.9)
    slow.record("slow", 1)
    now += 4
    slow.record("later", 1)
    assert set(slow.current()) == {"slow", "later"}
    now += 1
    assert set(slow.current()) == {"later"}
    now += 4
    assert set(slow.current()) == set()


def test_latest_slow_accounts_are_kept() -> None:
    slow = SlowAccounts()
    for number in range(150):
        slow.record(str(number), 60)
    slow.record("60", 60)
    assert len(slow.current()) == 100
    assert {"60", "149"} <= set(slow.current())
    assert "49" not in slow.current()
