"""Rates as settings have them."""

from __future__ import annotations

import pytest

from service.config.settings import SettingsError, load
from service.config.values import Rate, parse_rate


@pytest.mark.parametrize(
    ("text", "per_s", "burst"),
    [
        ("100/s,burst=1000", 100, 1000),
        (" 100 / s , burst = 1000 ", 100, 1000),
        ("60/m", 1, 60),
        ("3600/h,burst=5", 1, 5),
        ("1/s", 1, 1),
    ],
)
def test_rate_has_count_unit_and_optional_burst(text: str, per_s: float, burst: int) -> None:
    assert parse_rate(text) == Rate(per_s, burst)


@pytest.mark.parametrize(("text", "seconds"), [("100/s", 1), ("6/m", 10), ("7/m", 9), ("1/h", 3600), ("3/h", 1200)])
def test_next_request_is_in_whole_seconds(text: str, seconds: int) -> None:
    rate = parse_rate(text)
    assert rate is not None
    assert rate.next_after_s == seconds


def test_empty_rate_is_no_limit() -> None:
    assert parse_rate("") is None
    assert load().rate_limit is None


@pytest.mark.parametrize(
    "text", ["100", "0/s", "100/d", "-1/s", "1.5/s", "100/s,burst=0", "100/s,burst=", "100/s;burst=5", "9999999999/s"]
)
def test_invalid_rate_names_the_variable(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGUERRE_RATE_LIMIT", text)
    with pytest.raises(SettingsError, match=r"^DAGUERRE_RATE_LIMIT: .*is not a rate: write 100/s"):
        load()
