"""Who is asking: `?key=`, `X-Api-Key` or `Authorization: Bearer`; and whether that key may ask now."""

from __future__ import annotations

import math

from aiohttp import web

from service.accounts.accounts import Account
from service.api.parameters import query
from service.api.resources import resources
from service.config.rates import Rate
from service.errors import ServiceError

# The field as it will be sent; empty where nobody looked.
_RATE_LIMIT = web.RequestKey("rate_limit", str)


async def authenticate(request: web.Request) -> Account:
    """The account of the request's key, as it was at most 4 s ago.

    Raises `unauthorized`, `rate-limited`, `account-suspended`.
    """
    key = _key(request)
    if not key:
        raise ServiceError("unauthorized")
    service = resources(request)
    account = await service.keys.owner(key)
    if service.rate_limiter is not None:
        standing = await service.rate_limiter.admit(key)
        request[_RATE_LIMIT] = f'"key";r={standing.remaining};t={standing.retry_after_s}' if standing else ""
        if standing is not None and standing.refused:
            raise ServiceError("rate-limited", retry_after_s=standing.retry_after_s)
    if account.is_suspended:
        raise ServiceError("account-suspended")
    return account


class ShowRateLimit:
    """For `on_response_prepare` where there is a limit: the fields of draft-ietf-httpapi-ratelimit-headers-11, of May
    2026.

    Its `t` is the time within which no more than `r` requests are to be had; that of -10, the time until there are
    more. Here it is both.
    """

    def __init__(self, rate: Rate) -> None:
        self._policy = f'"key";q={rate.burst};w={math.ceil(rate.full_after_s)}'

    async def __call__(self, request: web.Request, response: web.StreamResponse) -> None:
        if (standing := request.get(_RATE_LIMIT)) is None:
            return
        response.headers["RateLimit-Policy"] = self._policy
        if standing:
            response.headers["RateLimit"] = standing


def _key(request: web.Request) -> str | None:
    if key := query(request).get("key") or request.headers.get("X-Api-Key"):
        return key
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None
