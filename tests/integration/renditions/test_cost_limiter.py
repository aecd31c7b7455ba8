"""The first request for a rendition is charged for it, once, and for the seconds that it took."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from service.config.values import Rate
from service.errors import ServiceError
from service.ids import AccountId, ImageId
from service.limits.rate_limiter import RateLimiter
from service.renditions.cost_limiter import CostLimiter, Requester
from service.renditions.costs import TOKEN_S
from service.storage.interface import RenditionKey

RATE = Rate(per_s=0.01, burst=100)
ACCOUNT = AccountId(1)


@pytest.fixture
async def limiters(redis_url: str) -> AsyncIterator[tuple[RateLimiter, RateLimiter]]:
    async with AsyncExitStack() as stack:
        accounts = await stack.enter_async_context(RateLimiter.open(redis_url, RATE, "accounts"))
        addresses = await stack.enter_async_context(RateLimiter.open(redis_url, RATE.part(0.75), "addresses"))
        yield accounts, addresses


@pytest.fixture
def charges(limiters: tuple[RateLimiter, RateLimiter]) -> CostLimiter:
    return CostLimiter(*limiters)


def key(number: int) -> RenditionKey:
    return RenditionKey(ImageId("AAAAAAA"), f"{number:032x}")


async def remaining(limiters: tuple[RateLimiter, RateLimiter], address: str = "a") -> tuple[int, int]:
    """Returns the tokens left of the account and of the address. Reading them costs one of each."""
    await asyncio.sleep(0.05)  # corrections are sent in the background
    found = [await limiters[0].admit(str(ACCOUNT)), await limiters[1].admit(address)]
    return tuple(one.remaining if one else -1 for one in found)  # type: ignore[return-value]


async def test_estimate_is_charged_at_once(charges: CostLimiter, limiters: tuple[RateLimiter, RateLimiter]) -> None:
    await charges.charge(key(1), Requester(ACCOUNT, "a"), 30 * TOKEN_S)
    assert await remaining(limiters) == (69, 44)


@pytest.mark.parametrize(("seconds", "left"), [(0.0, (98, 73)), (10 * TOKEN_S, (89, 64)), (60 * TOKEN_S, (39, 14))])
async def test_measured_seconds_replace_the_estimate(
    charges: CostLimiter, limiters: tuple[RateLimiter, RateLimiter], seconds: float, left: tuple[int, int]
) -> None:
    await charges.charge(key(1), Requester(ACCOUNT, "a"), 30 * TOKEN_S)
    charges.settle(key(1), seconds)
    assert await remaining(limiters) == left
    charges.settle(key(1), seconds)  # once
    charges.refund(key(1))
    assert await remaining(limiters) == (left[0] - 1, left[1] - 1)


async def test_unknown_seconds_leave_the_estimate(
    charges: CostLimiter, limiters: tuple[RateLimiter, RateLimiter]
) -> None:
    await charges.charge(key(1), Requester(ACCOUNT, "a"), 30 * TOKEN_S)
    charges.settle(key(1), None)
    assert await remaining(limiters) == (69, 44)


async def test_refund_returns_the_whole_charge(charges: CostLimiter, limiters: tuple[RateLimiter, RateLimiter]) -> None:
    await charges.charge(key(1), Requester(ACCOUNT, "a"), 30 * TOKEN_S)
    charges.refund(key(1))
    assert await remaining(limiters) == (99, 74)


async def test_rendition_is_charged_once(charges: CostLimiter, limiters: tuple[RateLimiter, RateLimiter]) -> None:
    await asyncio.gather(*(charges.charge(key(1), Requester(ACCOUNT, "a"), 10 * TOKEN_S) for _ in range(7)))
    await charges.charge(key(1), Requester(ACCOUNT, "b"), 10 * TOKEN_S)
    assert await remaining(limiters) == (89, 64)
    assert (await remaining(limiters, "b"))[1] == 74


async def test_signed_request_is_not_charged(charges: CostLimiter, limiters: tuple[RateLimiter, RateLimiter]) -> None:
    await charges.charge(key(1), Requester(ACCOUNT, None), 1000 * TOKEN_S)
    charges.settle(key(1), 1000 * TOKEN_S)
    assert await remaining(limiters) == (99, 74)


@pytest.mark.parametrize("accounts", [1, 100])
async def test_address_leaves_tokens_to_others(charges: CostLimiter, accounts: int) -> None:
    """It has one bucket for the images of all accounts."""
    refused = []
    for number in range(30):
        try:
            await charges.charge(key(number), Requester(AccountId(number % accounts), "a"), 5 * TOKEN_S)
        except ServiceError as error:
            refused.append(error)
    assert len(refused) == 15  # 75 tokens are 15 of these
    assert {error.code for error in refused} == {"too-many-renditions"}
    assert all("from this address" in error.message and error.retry_after_s for error in refused)
    await charges.charge(key(100), Requester(ACCOUNT, "b"), 5 * TOKEN_S)


async def test_refusal_by_the_account_costs_no_address(
    charges: CostLimiter, limiters: tuple[RateLimiter, RateLimiter]
) -> None:
    await charges.charge(key(1), Requester(ACCOUNT, "a"), 70 * TOKEN_S)
    await charges.charge(key(2), Requester(ACCOUNT, "b"), 70 * TOKEN_S)
    await asyncio.sleep(0.05)
    for number in range(3, 20):
        with pytest.raises(ServiceError, match="of this account's images"):
            await charges.charge(key(number), Requester(ACCOUNT, "c"), 5 * TOKEN_S)
    assert (await remaining(limiters, "c"))[1] == 74
