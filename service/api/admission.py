"""Admission of uploads and downloads, decided before the first byte of the file is requested."""

from __future__ import annotations

import math

from service.accounts.accounts import Account
from service.config.settings import Settings
from service.errors import ServiceError
from service.images.models import IdempotencyKey
from service.limits.pace import GRACE_S, Pace
from service.limits.slots import PreemptibleSlots
from service.queue.pubsub import Subscriber
from service.telemetry.metrics import metrics
from service.uploads.ingest import ProbeResult
from service.uploads.receiving import Body, too_large
from service.uploads.reservations import Reservation, Reservations


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
