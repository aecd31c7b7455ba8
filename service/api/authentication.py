"""The API key of a request: `?key=`, `X-Api-Key` or `Authorization: Bearer`. It identifies an account, and has a rate
limit.
"""

from __future__ import annotations

import math

from aiohttp import web

from service.accounts.accounts import Account
from service.api.parameters import query
from service.api.resources import Resources
from service.config.values import Rate
from service.errors import ServiceError

# The value of the RateLimit header; "" if the limiter could not be asked.
_RATE_LIMIT = web.RequestKey("rate_limit", str)


async def authenticate(request: web.Request, service: Resources) -> Account:
    """Returns the account of the request's API key, as it was at most 4 s ago.

    Raises `unauthorized`, `rate-limited`, `account-suspended`.
    """
    key = _find_key(request)
    if not key:
        raise ServiceError("unauthorized")
    account = await service.keys.find_account(key)
    if service.rate_limiter is not None:
        standing = await service.rate_limiter.admit(key)
        request[_RATE_LIMIT] = f'"key";r={standing.remaining};t={standing.retry_after_s}' if standing else ""
        if standing is not None and standing.refused:
            raise ServiceError("rate-limited", retry_after_s=standing.retry_after_s)
    if account.is_suspended:
        raise ServiceError("account-suspended")
    return account


class RateLimitHeaders:
    """For `on_response_prepare` with a rate limit: adds the headers of draft-ietf-httpapi-ratelimit-headers-11 (May
    2026).

    `t` is the time within which at most `r` requests are available. In draft -10 it was the time until there are more.
    Here it is both.
    """

    def __init__(self, rate: Rate) -> None:
        self._policy = f'"key";q={rate.burst};w={math.ceil(rate.full_after_s)}'

    async def __call__(self, request: web.Request, response: web.StreamResponse) -> None:
        if (value := request.get(_RATE_LIMIT)) is None:
            return
        response.headers["RateLimit-Policy"] = self._policy
        if value:
            response.headers["RateLimit"] = value


def _find_key(request: web.Request) -> str | None:
    if key := query(request).get("key") or request.headers.get("X-Api-Key"):
        return key
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None
