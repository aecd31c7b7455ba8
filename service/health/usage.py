"""Measures the space that disks and the database use. Results are cached, so frequent scrapes cost nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import TypeVar

from service.database import Database
from service.errors import ServiceError
from service.single_flight import SingleFlight
from service.storage.files import in_thread
from service.storage.interface import OriginalStorage, RenditionStorage
from service.telemetry.gauges import DiskSpace, StoredState

# Measuring is slow: PostgreSQL inspects each file of the database, and the sum reads all accounts.
_CACHE_TTL_S = 15.0
# A scrape leaves out measurements that take longer.
_TIMEOUT_S = 1.0

Result = TypeVar("Result")

# The data directory is visible to superusers and members of pg_read_all_settings. It is a path of this machine if the
# connection is a Unix socket.
_SIZES = """
select coalesce(sum(num_images), 0)::bigint as images, coalesce(sum(used_bytes), 0)::bigint as bytes,
    pg_database_size(current_database()) as database_bytes,
    case when inet_server_addr() is null then
        (select setting from pg_settings where name = 'data_directory')
    end as folder
from accounts
"""


def measure_space(folder: str | Path) -> DiskSpace:
    """Returns the space of the disk that holds the folder. Blocks the thread. Raises OSError."""
    status = os.statvfs(folder)
    block = status.f_frsize
    return DiskSpace(
        status.f_blocks * block, (status.f_blocks - status.f_bfree) * block, max(0, status.f_bavail) * block
    )


class UsageMeter:
    """Measures the space of disks and what is stored.

    The disks of the storages are those of `daguerre_disk_…_bytes`.
    """

    def __init__(self, database: Database, storages: Sequence[OriginalStorage | RenditionStorage]) -> None:
        self._database = database
        self._folders: dict[str, tuple[Path, Executor]] = {
            name: (folder, storage.threads) for storage in storages for name, folder in storage.disks.items()
        }
        self._spaces = {name: SingleFlight[DiskSpace](_TIMEOUT_S, ttl_s=_CACHE_TTL_S) for name in self._folders}
        self._sizes: SingleFlight[tuple[StoredState, DiskSpace | None]] = SingleFlight(_TIMEOUT_S, ttl_s=_CACHE_TTL_S)

    async def measure(self) -> tuple[dict[str, DiskSpace], StoredState | None]:
        """Returns the space of the disks by name, and what is stored, without what cannot be measured now."""
        sizes, spaces = await asyncio.gather(self._find_sizes(), asyncio.gather(*map(self._find_space, self._folders)))
        disks = {name: space for name, space in zip(self._folders, spaces, strict=True) if space is not None}
        stored, database_space = sizes or (None, None)
        if database_space is not None:
            disks["database"] = database_space
        return disks, stored

    async def _find_sizes(self) -> tuple[StoredState, DiskSpace | None] | None:
        try:
            return await self._sizes.get(self._measure_sizes)
        except (ServiceError, OSError):
            return None

    async def _find_space(self, name: str) -> DiskSpace | None:
        folder, threads = self._folders[name]
        try:
            return await self._spaces[name].get(partial(in_thread, threads, partial(measure_space, folder)))
        except OSError:
            return None

    async def _measure_sizes(self) -> tuple[StoredState, DiskSpace | None]:
        async with self._database.connection() as connection:
            row = await connection.fetchrow(_SIZES)
        assert row is not None  # noqa: S101 - it is a sum
        stored = StoredState(row["images"], row["bytes"], row["database_bytes"])
        try:
            return stored, row["folder"] and await asyncio.to_thread(measure_space, row["folder"])
        except OSError:  # the folder is in another container, or this user may not read it
            return stored, None
