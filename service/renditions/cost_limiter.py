"""Limits new renditions by their cost, in tokens of the image's account and of the address that requests it.

An estimate is charged before a rendition is rendered, and corrected afterwards by the measured seconds.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass

from service.errors import ServiceError
from service.ids import AccountId
from service.limits.rate_limiter import RateLimiter
from service.renditions.costs import count_tokens
from service.storage.interface import RenditionKey

# A job waits for at most a minute and may be retried. A charge that is not settled by then stays at its estimate.
_CHARGE_TTL_S = 120.0
_MAX_CHARGES = 20_000


@dataclass(frozen=True, slots=True)
class Requester:
    """Who requests a rendition of an image of the account. `address` is None for a signed URL, which is free: the
    account itself signed it.
    """

    account_id: AccountId
    address: str | None


@dataclass(frozen=True, slots=True)
class _Charge:
    requester: Requester
    tokens: float
    expires_at: float


class CostLimiter:
    """`accounts` and `addresses` are both None if there is no limit."""

    def __init__(self, accounts: RateLimiter | None, addresses: RateLimiter | None) -> None:
        self._accounts = accounts
        self._addresses = addresses
        self._charges: OrderedDict[RenditionKey, _Charge] = OrderedDict()  # oldest first

    async def charge(self, key: RenditionKey, requester: Requester, seconds: float) -> None:
        """Charges the estimate, unless the rendition is already charged. Raises `too-many-renditions`."""
        if requester.address is None or self._accounts is None or self._addresses is None or self._is_charged(key):
            return
        tokens = count_tokens(seconds)
        await _admit(self._addresses, requester.address, tokens, "from this address")
        try:
            await _admit(self._accounts, str(requester.account_id), tokens, "of this account's images")
        except ServiceError:
            self._addresses.correct(requester.address, tokens)
            raise
        if self._is_charged(key):  # by another request, while this one waited
            self._return_tokens(requester, tokens)
            return
        self._charges.pop(key, None)
        self._charges[key] = _Charge(requester, tokens, time.monotonic() + _CHARGE_TTL_S)
        if len(self._charges) > _MAX_CHARGES:
            self._charges.popitem(last=False)

    def settle(self, key: RenditionKey, seconds: float | None) -> None:
        """Replaces the estimate by the seconds that a decoder took; None keeps it."""
        charge = self._charges.pop(key, None)
        if charge is not None and seconds is not None:
            self._return_tokens(charge.requester, charge.tokens - count_tokens(seconds))

    def refund(self, key: RenditionKey) -> None:
        """Returns the whole charge, because another requester pays for the rendition or it is not rendered."""
        charge = self._charges.pop(key, None)
        if charge is not None:
            self._return_tokens(charge.requester, charge.tokens)

    def _is_charged(self, key: RenditionKey) -> bool:
        charge = self._charges.get(key)
        return charge is not None and time.monotonic() < charge.expires_at

    def _return_tokens(self, requester: Requester, tokens: float) -> None:
        """Returns tokens to both limits. A negative number is charged in addition."""
        if tokens and requester.address is not None and self._accounts is not None and self._addresses is not None:
            self._addresses.correct(requester.address, tokens)
            self._accounts.correct(str(requester.account_id), tokens)


async def _admit(limiter: RateLimiter, key: str, tokens: float, source: str) -> None:
    status = await limiter.admit(key, tokens)
    if status is not None and status.refused:
        raise ServiceError(
            "too-many-renditions",
            f"Too many requests for new renditions {source}; retry after the seconds in Retry-After.",
            retry_after_s=status.retry_after_s,
        )
