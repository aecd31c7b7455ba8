"""The id that the database records for its storage, as a backend has loaded it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from service.errors import ServiceError

# Shorter than the time limit of a check, so that a database that hangs does not look like a storage that hangs.
_LOAD_TIMEOUT_S = 1.0


class RecordedId:
    """`value` is the id that was loaded last. Without `load`, any storage is accepted."""

    def __init__(self, load: Callable[[], Awaitable[str | None]] | None) -> None:
        self.value: str | None = None
        self._load = load

    @property
    def is_required(self) -> bool:
        """Whether the storage must have this id."""
        return self._load is not None

    async def load(self) -> bool:
        """Returns whether the id has changed, e.g. because the database was restored. Raises `database-unavailable`."""
        if self._load is None:
            return False
        before, self.value = self.value, await self._load()
        return self.value != before

    async def load_soon(self) -> bool:
        """Like `load`, but keeps the last id if the database does not respond soon."""
        try:
            async with asyncio.timeout(_LOAD_TIMEOUT_S):
                return await self.load()
        except (ServiceError, TimeoutError):
            return False
