"""Admission of requests: the account of an API key, its rate limit, and room for the file of an upload or download.

A key comes as `?key=`, `X-Api-Key` or `Authorization: Bearer`. All is decided before the first byte of a file is
requested.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from aiohttp import web

from service.accounts.accounts import Account
from service.api.parameters import query
from service.config.settings import Settings
from service.config.values import Rate
from service.errors import ServiceError
from service.images.models import IdempotencyKey
from service.limits.slots import GRACE_S, Pace, PreemptibleSlots
from service.queue.waiter import Subscriber
from service.telemetry.metrics import metrics
from service.uploads.ingest import ProbeResult
from service.uploads.receiving import Body, Reservation, Reservations, too_large

if TYPE_CHECKING:
    from service.api.resources import Resources  # it opens the Admission


class Admission:
    def __init__(self, settings: Settings, reservations: Reservations, results: Subscriber[ProbeResult]) -> None:
        self._max_bytes = settings.max_upload
        self._upload_grace_s = max(GRACE_S, settings.upload_idle_timeout_s)
        self._reservations = reservations
        self._results = results
        self._uploads = PreemptibleSlots(settings.uploads_in_flight, metrics.uploads_in_flight)
        self._downloads = PreemptibleSlots(settings.downloads_in_flight, metrics.downloads_in_flight)

    async def upload(self, account: Account, length: int | None, key: IdempotencyKey | None) -> Body:
        """Reserves a slot, and bytes of the account's quota, for a body of this declared length.

        Raises `upload-too-large`, `empty-body`, `quota-exceeded`, `busy`, and `queue-unavailable` while no job can be
        enqueued.
        """
        reservation = self._reservations.open(account, key)
        try:
            await self.reserve(reservation, length)
            return self._take(self._uploads, reservation, self._upload_grace_s)
        except BaseException:
            reservation.close()
            raise

    async def download(self, account: Account, key: IdempotencyKey | None) -> Body:
        """The same for a file from a URL. Downloads have their own slots, so that slow origins do not block uploads."""
        reservation = self._reservations.open(account, key)
        try:
            await self.reserve(reservation, None)
            reservation.release()  # until its length is known, it blocks no other upload
            return self._take(self._downloads, reservation, math.inf)  # the timeouts of the origin expire first
        except BaseException:
            reservation.close()
            raise

    async def reserve(self, reservation: Reservation, length: int | None) -> None:
        """Reserves a file's declared length, if it has one; the bytes that arrive are counted in any case.

        Raises `upload-too-large`, `empty-body`, `quota-exceeded`.
        """
        if length is not None and length > self._max_bytes:
            raise too_large(self._max_bytes)
        if length == 0:
            raise ServiceError("empty-body")
        await reservation.cover(length or 1)

    def _take(self, slots: PreemptibleSlots, reservation: Reservation, grace_s: float) -> Body:
        if not self._results.connected:
            raise ServiceError("queue-unavailable")
        pace = Pace(grace_s)
        pace.begin_wait()
        return Body(slots, slots.acquire(reservation.account.id, pace), reservation)


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
