"""Which uploads and downloads are let in: decided before a byte of the picture is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from service.accounts.records import Account, load_account
from service.database import Database
from service.errors import ServiceError
from service.images.idempotency import IdempotencyKey
from service.images.repeats import find_taken
from service.queue.replies import Replies
from service.settings import Settings
from service.telemetry.metrics import InFlight, metrics
from service.uploads.receiving import too_large


@dataclass(slots=True)
class _Places:
    all: int
    gauge: InFlight
    taken: int = 0


class Admission:
    def __init__(self, settings: Settings, database: Database, replies: Replies) -> None:
        self._settings = settings
        self._database = database
        self._replies = replies
        self._uploads = _Places(settings.uploads_in_flight, metrics.uploads_in_flight)
        self._downloads = _Places(settings.downloads_in_flight, metrics.downloads_in_flight)

    def upload(self) -> AbstractContextManager[None]:
        """Hold one of this process's places. Raises `busy`, or `queue-unavailable` while no job can be enqueued."""
        return self._admit(self._uploads)

    def download(self) -> AbstractContextManager[None]:
        """The same for a picture from a URL: slow origins must not take the places of uploads."""
        return self._admit(self._downloads)

    @contextmanager
    def _admit(self, places: _Places) -> Iterator[None]:
        if places.taken >= places.all:
            raise ServiceError("busy")
        if not self._replies.connected:
            raise ServiceError("queue-unavailable")
        places.taken += 1
        places.gauge.inc()
        try:
            yield
        finally:
            places.taken -= 1
            places.gauge.dec()

    async def check_length(self, account: Account, length: int | None, key: IdempotencyKey | None) -> None:
        """A first look at a picture's declared length; the bytes that arrive are counted all the same.

        Raises `upload-too-large`, `empty-body`, `quota-exceeded`. A request under a key that stands for an image may
        be that image's own, which perhaps filled the account: it is let in.
        """
        if length is not None and length > self._settings.max_upload:
            raise too_large(self._settings.max_upload)
        if length == 0:
            raise ServiceError("empty-body")
        if account.remaining_bytes < (length or 1):
            # What the key ring remembers may be older than a delete.
            async with self._database.connection() as connection:
                account = await load_account(connection, account.id)
                if account.remaining_bytes < (length or 1) and not (
                    key and await find_taken(connection, [(account.id, key.text)])
                ):
                    raise ServiceError("quota-exceeded")
