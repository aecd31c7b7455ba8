"""What requests for new renditions pay: tokens of the account whose image it is, and of the address that asks first."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass

from service.errors import ServiceError
from service.ids import AccountId
from service.limits.rate_limiter import RateLimiter
from service.renditions.prices import count_tokens
from service.storage.renditions import RenditionKey

# A job waits for at most a minute and may be tried again. What has no end by then keeps its estimated price.
_KEEP_S = 120.0
_MAX_CHARGES = 20_000


@dataclass(frozen=True, slots=True)
class Payer:
    """Who asks for a rendition of the account's image. `address` is None for who holds a signed URL, and pays nothing:
    the account itself asked for it.
    """

    account_id: AccountId
    address: str | None


@dataclass(frozen=True, slots=True)
class _Charge:
    payer: Payer
    tokens: float
    until: float


class Charges:
    """Debits the estimated price of a rendition once, and settles it by the seconds that it took.

    `accounts` and `addresses` are both None where there is no limit.
    """

    def __init__(self, accounts: RateLimiter | None, addresses: RateLimiter | None) -> None:
        self._accounts = accounts
        self._addresses = addresses
        self._charges: OrderedDict[RenditionKey, _Charge] = OrderedDict()  # the oldest first

    async def debit(self, key: RenditionKey, payer: Payer, seconds: float) -> None:
        """Nothing if the rendition is paid for. Raises `too-many-renditions`."""
        if payer.address is None or self._accounts is None or self._addresses is None or self._is_paid(key):
            return
        tokens = count_tokens(seconds)
        await _admit(self._addresses, payer.address, tokens, "from this address")
        try:
            await _admit(self._accounts, str(payer.account_id), tokens, "of this account's images")
        except ServiceError:
            self._addresses.correct(payer.address, tokens)
            raise
        if self._is_paid(key):  # another request paid while this one waited
            self._pay_back(payer, tokens)
            return
        self._charges.pop(key, None)
        self._charges[key] = _Charge(payer, tokens, time.monotonic() + _KEEP_S)
        if len(self._charges) > _MAX_CHARGES:
            self._charges.popitem(last=False)

    def settle(self, key: RenditionKey, seconds: float | None) -> None:
        """The rendition took these seconds of a child; None leaves the price as it was estimated."""
        charge = self._charges.pop(key, None)
        if charge is not None and seconds is not None:
            self._pay_back(charge.payer, charge.tokens - count_tokens(seconds))

    def cancel(self, key: RenditionKey) -> None:
        """The rendition is not made for this payer."""
        charge = self._charges.pop(key, None)
        if charge is not None:
            self._pay_back(charge.payer, charge.tokens)

    def _is_paid(self, key: RenditionKey) -> bool:
        charge = self._charges.get(key)
        return charge is not None and time.monotonic() < charge.until

    def _pay_back(self, payer: Payer, tokens: float) -> None:
        """Less than nothing is a further debit."""
        if tokens and payer.address is not None and self._accounts is not None and self._addresses is not None:
            self._addresses.correct(payer.address, tokens)
            self._accounts.correct(str(payer.account_id), tokens)


async def _admit(limiter: RateLimiter, key: str, tokens: float, whose: str) -> None:
    standing = await limiter.admit(key, tokens)
    if standing is not None and standing.refused:
        raise ServiceError(
            "too-many-renditions",
            f"Too many new renditions {whose} were asked for; wait as many seconds as Retry-After says.",
            retry_after_s=standing.retry_after_s,
        )
