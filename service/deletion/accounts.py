"""Deletes an account and everything that it stores, in steps that can be interrupted and resumed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from service.accounts.accounts import finish_deletion
from service.database import Connection, Database
from service.deletion.removals import Removal, list_removals, remove_files
from service.ids import AccountId, ImageId
from service.images.updates import delete_failed_batch, delete_stored_batch
from service.storage.interface import OriginalStorage, RenditionStorage

_Delete: TypeAlias = Callable[[Connection, AccountId, int], Awaitable[list[ImageId]]]

# Images in one transaction, which locks their rows and the account's for some ten milliseconds.
_BATCH_SIZE = 500


@dataclass(frozen=True, slots=True)
class AccountDeletion:
    """Removes the rows and files of an account whose deletion has started (`accounts.start_deletion`).

    Files that are not in this storage keep their row in `removals` for the workers' sweep, because this process may use
    another storage than the workers.
    """

    database: Database
    storage: OriginalStorage
    renditions: RenditionStorage

    async def run(self, account_id: AccountId) -> AsyncGenerator[int, None]:
        """Yields the number of deleted images after each batch, and deletes the account at the end.

        Raises ServiceError if the database is unavailable, and OSError if the storage is. Run it again afterwards.
        """
        deleted = 0
        is_deleted = False
        while not is_deleted:
            while image_ids := await self._delete_batch(delete_stored_batch, account_id):
                await self._remove(image_ids)
                deleted += len(image_ids)
                yield deleted
            while image_ids := await self._delete_batch(delete_failed_batch, account_id):
                await self._remove(image_ids)
            async with self.database.connection() as connection:
                is_deleted = await finish_deletion(connection, account_id)

    async def remove_remaining(self) -> int:
        """Removes the files of all images in `removals`, including those of an interrupted run.

        Returns how many of them are not in this storage.
        """
        missing = 0
        last: Removal | None = None
        while removals := await self._list_removals(last):
            last = removals[-1]
            missing += await self._remove([removal.image_id for removal in removals])
        return missing

    async def _delete_batch(self, delete: _Delete, account_id: AccountId) -> list[ImageId]:
        async with self.database.connection() as connection:
            return await delete(connection, account_id, _BATCH_SIZE)

    async def _remove(self, image_ids: Sequence[ImageId]) -> int:
        """Returns how many of the files are not in this storage."""
        await self.storage.require_available()
        present = await self.storage.list_present(image_ids)
        await remove_files(self.database, self.storage, self.renditions, present)
        return len(image_ids) - len(present)

    async def _list_removals(self, after: Removal | None) -> list[Removal]:
        async with self.database.connection() as connection:
            return await list_removals(connection, 0, _BATCH_SIZE, after)
