"""Which address a request comes from, and what it is held against when it guesses at ids."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from service.api.clients import client_address
from service.delivery.misses import Misses
from service.errors import ServiceError
from service.limits import buckets
from service.limits.buckets import RateLimiter
from service.limits.rates import Rate
from service.settings import SettingsError, load, parse_networks, parse_widths

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


async def test_an_address_is_told_so_until_it_may_guess_again(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one right guess a second would be told, however low the rate."""
    monkeypatch.setattr(buckets, "_MOST_PAUSE_S", 0.05)
    async with RateLimiter.open(redis_url, Rate.parse("2/h"), "misses") as limiter:  # type: ignore[arg-type]
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
