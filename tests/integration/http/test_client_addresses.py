"""Which address a request comes from, and what it is held against when it guesses at ids."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict
from structlog.testing import capture_logs

from service.config.rates import Rate
from service.config.settings import SettingsError, load, parse_networks, parse_widths
from service.delivery.not_found_limiter import Misses
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
def test_the_client_is_the_nearest_that_is_no_trusted_proxy(remote: str, forwarded: list[str], client: str) -> None:
    assert address(remote, *forwarded) == client


def test_without_trusted_proxies_nothing_is_believed() -> None:
    assert address("127.0.0.1", "203.0.113.9", trusted=()) == "127.0.0.1"


def warnings_of(trusted: Any, *requests: tuple[str, dict[str, str]]) -> list[tuple[str, str]]:
    """The events that requests from these addresses, with these headers, are logged with; and the addresses."""
    proxies = ProxyWarnings(trusted)
    with capture_logs() as logs:
        for remote, headers in requests:
            transport = cast("Any", _Transport(remote))
            proxies.look_at(make_mocked_request("GET", "/i/a", headers=headers, transport=transport))
    return [(line["event"], line["address"]) for line in logs]


@pytest.mark.parametrize("header", ["X-Forwarded-For", "x-forwarded-for", "Forwarded", "X-Real-IP"])
def test_an_untrusted_proxy_is_warned_about_once(header: str) -> None:
    asked = [(remote, {header: "203.0.113.9"}) for remote in ("192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.1")]
    expected = [("proxy.not_trusted", "192.0.2.1"), ("proxy.not_trusted", "192.0.2.2")]
    assert warnings_of(PROXIES, *asked) == warnings_of((), *asked) == expected


def test_a_trusted_proxy_and_a_client_are_no_warning() -> None:
    assert warnings_of(PROXIES, ("10.0.0.1", {"X-Forwarded-For": "203.0.113.9"}), ("203.0.113.9", {})) == []


def test_a_proxy_that_names_clients_in_vain_is_warned_about() -> None:
    asked = [("10.0.0.1", {"Forwarded": "for=203.0.113.9"})] * 3
    assert warnings_of(PROXIES, *asked) == [("proxy.forwards_no_address", "10.0.0.1")]


def test_warnings_about_proxies_are_bounded() -> None:
    asked = [(f"192.0.2.{number}", {"Forwarded": "for=x"}) for number in range(100)]
    assert len(warnings_of((), *asked)) == MAX_WARNINGS


async def test_the_warning_names_the_setting(api: Client) -> None:
    with capture_logs() as logs:
        for _ in range(3):
            await api.get("/i/AAAAAAA", headers={"X-Forwarded-For": "203.0.113.9"})
    [warning] = [line for line in logs if line["event"] == "proxy.not_trusted"]
    assert warning["log_level"] == "warning"
    assert (warning["address"], warning["setting"]) == ("127.0.0.1", "DAGUERRE_TRUSTED_PROXIES")


async def test_an_address_with_too_many_misses_is_told_so_before_anything_is_looked_up(redis_url: str) -> None:
    async with RateLimiter.open(redis_url, Rate.parse("2/h"), "misses") as limiter:  # type: ignore[arg-type]
        misses = Misses(limiter)
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


async def test_address_is_refused_until_its_next_token(redis_url: str) -> None:
    """Else one right guess a second would be answered, however low the rate."""
    timings = RateLimitTimings(max_pause_s=0.05)
    async with RateLimiter.open(redis_url, Rate.parse("2/h"), "misses", timings=timings) as limiter:  # type: ignore[arg-type]
        misses = Misses(limiter)
        for _ in range(2):
            await misses.count("203.0.113.9")
        with pytest.raises(ServiceError, match="too-many-misses"):
            await misses.count("203.0.113.9")
        await asyncio.sleep(0.1)
        with pytest.raises(ServiceError, match="too-many-misses"):
            misses.check("203.0.113.9")


async def test_an_ipv6_network_counts_as_one_client_and_a_mapped_address_as_its_own(redis_url: str) -> None:
    async with RateLimiter.open(redis_url, Rate.parse("1/h"), "misses") as limiter:  # type: ignore[arg-type]
        misses = Misses(limiter)
        for first, second in [("2001:db8::1", "2001:db8::ffff:2"), ("::ffff:192.0.2.1", "192.0.2.1")]:
            await misses.count(first)
            with pytest.raises(ServiceError):
                await misses.count(second)
        await misses.count("2001:db8:0:1::1")


async def test_the_limits_of_keys_and_of_addresses_are_apart(redis_url: str) -> None:
    rate = Rate(per_s=0.001, burst=1)
    async with RateLimiter.open(redis_url, rate) as keys, RateLimiter.open(redis_url, rate, "misses") as misses:
        for limiter in (keys, misses):
            standing = await limiter.admit("same")
            assert standing is not None
            assert not standing.refused


def test_widths_come_sorted_and_once() -> None:
    assert parse_widths("640, 320,640,") == (320, 640)
    assert parse_widths("") == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [("rendition_widths", "a"), ("rendition_widths", "0"), ("rendition_widths", "9000"), ("trusted_proxies", "x")],
)
def test_a_setting_that_cannot_be_is_refused_by_its_name(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"DAGUERRE_{name.upper()}"):
        load(**{name: value})
