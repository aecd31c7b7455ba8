"""A cache of images and of the delivery policies of their accounts, for some seconds."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from service.accounts.policies import Policy, find_policies
from service.batcher import Batcher
from service.database import Database
from service.expiring_cache import LOOKUP_TTL_S, Entry, ExpiringCache
from service.ids import AccountId, ImageId
from service.images.models import Image
from service.images.queries import find_across_accounts

_MAX_ENTRIES = 10_000


@dataclass(frozen=True, slots=True)
class ServedImage:
    """`valid_until` is on the monotonic clock."""

    image: Image
    policy: Policy
    valid_until: float


class ServedImageCache:
    """Caches images and policies separately. Cache misses share their queries."""

    def __init__(self, database: Database) -> None:
        self._images: ExpiringCache[ImageId, Image] = ExpiringCache(_MAX_ENTRIES)
        self._policies: ExpiringCache[AccountId, Policy] = ExpiringCache(_MAX_ENTRIES)
        self._generation = 0
        self.image_lookups: Batcher[ImageId, Image | None] = Batcher(partial(_find_images, database))
        self.policy_lookups: Batcher[AccountId, Policy | None] = Batcher(partial(_find_policies, database))

    async def find(self, image_id: ImageId) -> ServedImage | None:
        """Returns the image, in any state and of any account, or None if it does not exist."""
        image = self._images.get_entry(image_id) or await self._find_image(image_id)
        if image is None:
            return None
        policy = self._policies.get_entry(image.value.account_id) or await self._find_policy(image.value.account_id)
        if policy is None:
            return None  # the account was deleted, after its images
        return ServedImage(image.value, policy.value, min(image.expires_at, policy.expires_at))

    def invalidate(self, image_ids: Iterable[ImageId]) -> None:
        """Drops deleted images. Lookups in flight are not cached."""
        self._generation += 1
        for image_id in image_ids:
            self._images.remove(image_id)

    def invalidate_all(self) -> None:
        self._generation += 1
        self._images.clear()

    async def _find_image(self, image_id: ImageId) -> Entry[Image] | None:
        looked_up_at, generation = time.monotonic(), self._generation
        image = await self.image_lookups.submit(image_id)
        if image is None:
            return None
        if image.state == "ready" and generation == self._generation:
            return self._images.put(image_id, image, looked_up_at + LOOKUP_TTL_S)
        return Entry(image, looked_up_at + LOOKUP_TTL_S)

    async def _find_policy(self, account_id: AccountId) -> Entry[Policy] | None:
        looked_up_at = time.monotonic()
        policy = await self.policy_lookups.submit(account_id)
        if policy is None:
            return None
        return self._policies.put(account_id, policy, looked_up_at + LOOKUP_TTL_S)


async def _find_images(database: Database, image_ids: Sequence[ImageId]) -> list[Image | None]:
    async with database.connection() as connection:
        return await find_across_accounts(connection, image_ids)


async def _find_policies(database: Database, account_ids: Sequence[AccountId]) -> list[Policy | None]:
    async with database.connection() as connection:
        return await find_policies(connection, account_ids)
