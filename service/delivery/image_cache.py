"""Images with the delivery policies of their accounts, cached for some seconds."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from service.accounts.policies import Policy, find_policies
from service.batcher import Batcher
from service.database import Database
from service.ids import AccountId, ImageId
from service.images.models import Image
from service.images.queries import find_across_accounts

# Changed policies of accounts, and deletions that this process does not hear of, take effect within this time.
TRUST_S = 4.0
_MOST_REMEMBERED = 10_000

Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class ServedImage:
    """`trusted_until` is on the monotonic clock."""

    image: Image
    policy: Policy
    trusted_until: float


@dataclass(frozen=True, slots=True)
class _Seen(Generic[Value]):
    value: Value
    trusted_until: float


class _Memory(Generic[Key, Value]):
    """Values that are trusted for `TRUST_S`; the longest unused go first where there are too many."""

    def __init__(self) -> None:
        self._seen: OrderedDict[Key, _Seen[Value]] = OrderedDict()

    def get(self, key: Key) -> _Seen[Value] | None:
        seen = self._seen.get(key)
        if seen is None or time.monotonic() >= seen.trusted_until:
            return None
        self._seen.move_to_end(key)
        return seen

    def put(self, key: Key, seen: _Seen[Value]) -> None:
        self._seen[key] = seen
        self._seen.move_to_end(key)  # one that is looked up again has its old place
        if len(self._seen) > _MOST_REMEMBERED:
            self._seen.popitem(last=False)

    def drop(self, key: Key) -> None:
        self._seen.pop(key, None)

    def clear(self) -> None:
        self._seen.clear()


class ServedImageCache:
    """Caches images and policies apart. Lookups that miss the cache share their queries."""

    def __init__(self, database: Database) -> None:
        self._images: _Memory[ImageId, Image] = _Memory()
        self._policies: _Memory[AccountId, Policy] = _Memory()
        self._generation = 0
        self.finding_images: Batcher[ImageId, Image | None] = Batcher(partial(_find_images, database))
        self.finding_policies: Batcher[AccountId, Policy | None] = Batcher(partial(_find_policies, database))

    async def find(self, image_id: ImageId) -> ServedImage | None:
        """Returns the image, in whatever state and of whatever account, or None if it does not exist."""
        image = self._images.get(image_id) or await self._find_image(image_id)
        if image is None:
            return None
        policy = self._policies.get(image.value.account_id) or await self._find_policy(image.value.account_id)
        if policy is None:
            return None  # the account was deleted, after its images
        return ServedImage(image.value, policy.value, min(image.trusted_until, policy.trusted_until))

    def invalidate(self, image_ids: Iterable[ImageId]) -> None:
        """Drops deleted images. Lookups in flight are not cached."""
        self._generation += 1
        for image_id in image_ids:
            self._images.drop(image_id)

    def invalidate_all(self) -> None:
        self._generation += 1
        self._images.clear()

    async def _find_image(self, image_id: ImageId) -> _Seen[Image] | None:
        looked_at, generation = time.monotonic(), self._generation
        image = await self.finding_images.submit(image_id)
        if image is None:
            return None
        seen = _Seen(image, looked_at + TRUST_S)
        if image.state == "ready" and generation == self._generation:
            self._images.put(image_id, seen)
        return seen

    async def _find_policy(self, account_id: AccountId) -> _Seen[Policy] | None:
        looked_at = time.monotonic()
        policy = await self.finding_policies.submit(account_id)
        if policy is None:
            return None
        seen = _Seen(policy, looked_at + TRUST_S)
        self._policies.put(account_id, seen)
        return seen


async def _find_images(database: Database, image_ids: Sequence[ImageId]) -> list[Image | None]:
    async with database.connection() as connection:
        return await find_across_accounts(connection, image_ids)


async def _find_policies(database: Database, account_ids: Sequence[AccountId]) -> list[Policy | None]:
    async with database.connection() as connection:
        return await find_policies(connection, account_ids)
