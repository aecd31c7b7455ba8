"""An account is slow for a while after a picture that took long."""

from __future__ import annotations

from worker.sandbox.pool import SlowAccounts


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
