"""The address that a request comes from, and the rate limit for addresses that guess ids."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict
from structlog.testing import capture_logs

from service.config.settings import SettingsError, load
from service.config.values import Rate, parse_networks, parse_rate, parse_widths
from service.delivery.limits import NotFoundLimiter
from service.errors import ServiceError
from service.http.client_addresses import MAX_WARNINGS, ProxyWarnings, client_address
from service.limits.rate_limiter import RateLimiter, RateLimitTimings
from tests.conftest import Client

PROXIES = parse_networks("127.0.0.0/8, 10.0.0.0/8, fd00::/8")


class _Transport:
    def __init__(self, address: str) -> None:
        self._address = address

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return (self._address, 1) if name == "peername" else default


def address(remote: str, *forwarded: str, trusted: Any = PROXIES) -> str:
    headers = CIMultiDict([("X-Forwarded-For", value) for value in forwarded])
    request = make_mocked_request("GET", "/", headers=headers, transport=cast("Any", _Transport(remote)))
    return client_address(request, trusted)


@pytest.mark.parametrize(
    ("remote", "forwarded", "client"),
    [
        ("198.51.100.1", [], "198.51.100.1"),
        ("198.51.100.1", ["203.0.113.9"], "198.51.100.1"),
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("127.0.0.1", ["1.2.3.4, 203.0.113.9"], "203.0.113.9"),
        ("127.0.0.1", ["1.2.3.4, 203.0.113.9, 10.0.0.7"], "203.0.113.9"),
        ("127.0.0.1", ["1.2.3.4", "203.0.113.9"], "203.0.113.9"),
        ("127.0.0.1", ["10.0.0.8, 10.0.0.7"], "10.0.0.8"),
        ("127.0.0.1", ["<script>"], "<script>"),
        ("fd00::1", ["2001:db8::1"], "2001:db8::1"),
        ("127.0.0.1", ["1.2.3.4:80, 203.0.113.9:4711, 10.0.0.7:8080"], "203.0.113.9"),
        ("127.0.0.1", ["[2001:db8::1]:4711"], "2001:db8::1"),
        ("127.0.0.1", ["[2001:db8::1]"], "2001:db8::1"),
        ("::ffff:10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("::ffff:192.0.2.1", ["203.0.113.9"], "::ffff:192.0.2.1"),
    ],
)
def test_client_is_the_nearest_untrusted_address(remote: str, forwarded: list[str], client: str) -> None:
    assert address(remote, *forwarded) == client


def test_forwarded_header_of_untrusted_is_ignored() -> None:
    assert address("127.0.0.1", "203.0.113.9", trusted=()) == "127.0.0.1"


def warnings_of(trusted: Any, *requests: tuple[str, dict[str, str]]) -> list[tuple[str, str]]:
    """Returns the events, and their addresses, that requests from these addresses with these headers log."""
    proxy_warnings = ProxyWarnings(trusted)
    with capture_logs() as logs:
        for remote, headers in requests:
            transport = cast("Any", _Transport(remote))
            proxy_warnings.check(make_mocked_request("GET", "/i/a", headers=headers, transport=transport))
    return [(line["event"], line["address"]) for line in logs]


@pytest.mark.parametrize("header", ["X-Forwarded-For", "x-forwarded-for", "Forwarded", "X-Real-IP"])
def test_untrusted_proxy_is_logged_once(header: str) -> None:
    requests = [(remote, {header: "203.0.113.9"}) for remote in ("192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.1")]
    expected = [("proxy.not_trusted", "192.0.2.1"), ("proxy.not_trusted", "192.0.2.2")]
    assert warnings_of(PROXIES, *requests) == warnings_of((), *requests) == expected


def test_trusted_proxy_is_not_logged() -> None:
    assert warnings_of(PROXIES, ("10.0.0.1", {"X-Forwarded-For": "203.0.113.9"}), ("203.0.113.9", {})) == []


def test_proxy_with_other_header_is_logged() -> None:
    requests = [("10.0.0.1", {"Forwarded": "for=203.0.113.9"})] * 3
    assert warnings_of(PROXIES, *requests) == [("proxy.address_missing", "10.0.0.1")]


def test_number_of_proxy_warnings_is_bounded() -> None:
    requests = [(f"192.0.2.{number}", {"Forwarded": "for=x"}) for number in range(100)]
    assert len(warnings_of((), *requests)) == MAX_WARNINGS


async def test_proxy_warning_names_the_setting(api: Client) -> None:
    with capture_logs() as logs:
        for _ in range(3):
            await api.get("/i/AAAAAAA", headers={"X-Forwarded-For": "203.0.113.9"})
    [warning] = [line for line in logs if line["event"] == "proxy.not_trusted"]
    assert warning["log_level"] == "warning"
    assert (warning["address"], warning["setting"]) == ("127.0.0.1", "DAGUERRE_TRUSTED_PROXIES")


async def test_guessing_address_is_refused_before_lookups(redis_url: str) -> None:
    async with RateLimiter.open(redis_url, parse_rate("2/h"), "misses") as limiter:  # type: ignore[arg-type]
        misses = NotFoundLimiter(limiter)
        for _ in range(2):
            misses.check("203.0.113.9")
            await misses.count("203.0.113.9")
        with pytest.raises(ServiceError, match="too-many-misses"):
            await misses.count("203.0.113.9")
        with pytest.raises(ServiceError, match="too-many-misses") as caught:
            misses.check("203.0.113.9")
        assert caught.value.retry_after_s is not None
        assert caught.value.retry_after_s > 60
        misses.check("203.0.113.8")


async def test_refusal_lasts_until_the_next_token(redis_url: str) -> None:
    """Otherwise one correct guess a second would be answered, however low the rate."""
    timings = RateLimitTimings(max_pause_s=0.05)
    async with RateLimiter.open(redis_url, parse_rate("2/h"), "misses", timings=timings) as limiter:  # type: ignore[arg-type]
        misses = NotFoundLimiter(limiter)
        for _ in range(2):
            await misses.count("203.0.113.9")
        with pytest.raises(ServiceError, match="too-many-misses"):
            await misses.count("203.0.113.9")
        await asyncio.sleep(0.1)
        with pytest.raises(ServiceError, match="too-many-misses"):
            misses.check("203.0.113.9")


async def test_ipv6_network_counts_as_one_client(redis_url: str) -> None:
    async with RateLimiter.open(redis_url, parse_rate("1/h"), "misses") as limiter:  # type: ignore[arg-type]
        misses = NotFoundLimiter(limiter)
        for first, second in [("2001:db8::1", "2001:db8::ffff:2"), ("::ffff:192.0.2.1", "192.0.2.1")]:
            await misses.count(first)
            with pytest.raises(ServiceError):
                await misses.count(second)
        await misses.count("2001:db8:0:1::1")


async def test_key_and_address_limits_are_separate(redis_url: str) -> None:
    rate = Rate(per_s=0.001, burst=1)
    async with RateLimiter.open(redis_url, rate) as keys, RateLimiter.open(redis_url, rate, "misses") as misses:
        for limiter in (keys, misses):
            standing = await limiter.admit("same")
            assert standing is not None
            assert not standing.refused


def test_widths_are_sorted_and_unique() -> None:
    assert parse_widths("640, 320,640,") == (320, 640)
    assert parse_widths("") == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [("rendition_widths", "a"), ("rendition_widths", "0"), ("rendition_widths", "9000"), ("trusted_proxies", "x")],
)
def test_invalid_setting_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"DAGUERRE_{name.upper()}"):
        load(**{name: value})
