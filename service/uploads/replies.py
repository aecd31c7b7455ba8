"""Wait for the reply to a job: one pub/sub channel a process, and the row itself where a reply is lost."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

from service.database import Database
from service.errors import ServiceError
from service.ids import AccountId, ImageId
from service.images.models import Image
from service.images.queries import ImageQuery, find_images
from service.queue.pubsub import Listener

# A reply is a hint: whoever waits looks at the row this often, and whenever the channel comes back.
_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of a job's image; `image` is None if its row is gone."""

    image_id: ImageId
    image: Image | None


class Waiter:
    """One request's wait for one image."""

    def __init__(self, image_id: ImageId, account_id: AccountId, database: Database) -> None:
        self.reply: Reply | None = None
        self.look = asyncio.Event()
        self._image_id = image_id
        self._account_id = account_id
        self._database = database

    async def wait(self, timeout_s: float) -> Image | None:
        """The image once it is ready or failed, or None if it is still pending when the time is up.

        Raises `image-deleted` if the row is gone.
        """
        deadline = time.monotonic() + timeout_s
        while (remaining := deadline - time.monotonic()) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(remaining, _LOOK_S)):
                    await self.look.wait()
            self.look.clear()
            with suppress(ServiceError):  # the database is away: a reply may still come
                image = self.reply.image if self.reply else await self._read_row()
                if image is None:
                    break
                if image.state != "pending":
                    return image
        else:
            return None
        raise ServiceError("image-deleted")

    async def _read_row(self) -> Image | None:
        async with self._database.connection() as connection:
            [image] = await find_images(connection, [ImageQuery(self._image_id, self._account_id)])
        return image


class Replies:
    """The replies to this process's jobs."""

    def __init__(self, redis: Any, database: Database) -> None:
        self.channel = f"daguerre:replies:{secrets.token_hex(8)}"  # for a job's `reply_to`
        self._listener = Listener(redis, [self.channel], Reply, deliver=self._deliver, changed=self._look)
        self._database = database
        self._waiters: dict[ImageId, list[Waiter]] = {}

    @property
    def connected(self) -> bool:
        return self._listener.connected

    def find_deafness(self) -> Exception | None:
        """Why replies are not heard; None if they are."""
        return None if self.connected else self._listener.error or ConnectionError("not connected yet")

    async def wait_connected(self, timeout_s: float) -> None:
        """Until replies are heard, or the time is up."""
        await self._listener.wait_connected(timeout_s)

    async def listen(self) -> None:
        """Deliver replies until cancelled; reconnects by itself."""
        await self._listener.listen()

    @contextmanager
    def expect(self, image_id: ImageId, account_id: AccountId) -> Iterator[Waiter]:
        """Listen for a reply from now on: enter before the job is enqueued. Several may wait for one image."""
        waiter = Waiter(image_id, account_id, self._database)
        waiters = self._waiters.setdefault(image_id, [])
        waiters.append(waiter)
        try:
            yield waiter
        finally:
            waiters.remove(waiter)
            if not waiters:
                del self._waiters[image_id]

    def _look(self) -> None:
        """Replies may have been lost."""
        for waiter in chain.from_iterable(self._waiters.values()):
            waiter.look.set()

    def _deliver(self, reply: Reply) -> None:
        for waiter in self._waiters.get(reply.image_id, ()):
            waiter.reply = reply
            waiter.look.set()
