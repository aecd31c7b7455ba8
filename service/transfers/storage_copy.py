"""Copies all originals to another storage, while Daguerre runs on the present one.

Each run copies what the other storage does not have yet, so the command can be interrupted and repeated. The other
storage gets the id of this database's storage when it is complete, and no process uses it before.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from service.accounts.counters import count_images
from service.config.settings import Settings, SettingsError
from service.config.values import StoreUrl
from service.database import Database
from service.ids import IMAGE_ID_PATTERN
from service.images.integrity import find_orphans, scan_orphans
from service.storage.backends import open_inventory
from service.storage.identity import load_id
from service.storage.interface import OriginalInventory, StoredName
from service.transfers.copies import Copies

_COMMAND_TIMEOUT_S = 60
_PROGRESS_INTERVAL_S = 5.0
# Deleted images whose copies are moved after one scan of the table.
_MAX_CANDIDATES = 50_000


async def copy_storage(settings: Settings, target: Path | StoreUrl, *, write: Callable[[str], None]) -> bool:
    """Copies the originals of all rows from the storage of the settings. Returns whether all of them are there now.

    Files whose SHA-256 is not that of their row are reported, and copied nevertheless. Raises SettingsError,
    ServiceError and OSError.
    """
    async with Database.open(
        settings.database_url,
        connections=1,
        command_timeout_s=_COMMAND_TIMEOUT_S,
        pooler=settings.database_pooler,
    ) as database:
        _require_apart(settings.object_store or settings.storage_folder, target)
        source = open_inventory(settings, database, partial(load_id, database))
        await source.require_available()
        other = open_inventory(settings.model_copy(update={"storage": target}), database)
        await _require_free(source, other)
        await asyncio.to_thread(other.prepare_target)
        is_complete = await _copy(database, Copies(source, other, reads_source=True), write)
        if is_complete:
            if num_moved := await _quarantine_deleted(database, other):
                write(f"copies of deleted images, moved to `unclaimed`: {num_moved}")
            await asyncio.to_thread(os.sync)
            await asyncio.to_thread(other.create_own_id, source.id)
    return is_complete


def _require_apart(source: Path | StoreUrl, target: Path | StoreUrl) -> None:
    """Raises SettingsError if one is the other or inside it, because its folders may have the names of shards."""
    places = [_parts_of(source), _parts_of(target)]
    shorter, longer = sorted(places, key=len)
    if longer == shorter:
        raise SettingsError(f"{target} is the storage that is in use: name another one")
    if longer[: len(shorter)] == shorter:
        raise SettingsError(
            f"{source} is the storage that is in use, and {target} is not apart from it: name another one"
        )


def _parts_of(place: Path | StoreUrl) -> Sequence[str]:
    """Returns the names on the way to a storage. Symbolic links are followed."""
    if isinstance(place, Path):
        return place.resolve().parts
    return (f"{place.scheme}://{place.bucket}", *filter(None, place.prefix.split("/")))


async def _require_free(source: OriginalInventory, target: OriginalInventory) -> None:
    """Raises SettingsError if the target is the storage of another database."""
    own_id = await asyncio.to_thread(target.read_own_id)
    if own_id not in {None, source.id}:
        raise SettingsError(f"{target.location} is the storage of another database: name an empty one")


async def _copy(database: Database, copies: Copies, write: Callable[[str], None]) -> bool:
    is_complete, shown_at = True, time.monotonic()
    async with database.connection() as connection:
        total = await count_images(connection)
    async for faults in copies.add_all(database):
        for image_id, fault in faults.items():
            is_complete = False
            write(f"image {image_id}: {fault}")
        if time.monotonic() - shown_at >= _PROGRESS_INTERVAL_S:
            shown_at = time.monotonic()
            write(f"{copies.copied + copies.present} of {total} images: {copies.describe()}")
    write(copies.describe())
    return is_complete


async def _quarantine_deleted(database: Database, target: OriginalInventory) -> int:
    """Quarantines files whose images were deleted after an earlier run copied them, or after the target was in use.

    They are not deleted, because an older backup of the database may need them. Returns their number.
    """
    candidates: dict[str, StoredName] = {}
    num_moved = 0
    for shard in range(target.num_shards):
        async for files in target.list_shard(shard):
            candidates |= await _find_candidates(database, files)
        if len(candidates) > _MAX_CANDIDATES or shard == target.num_shards - 1:
            num_moved += await _quarantine(database, target, candidates)
            candidates = {}
    return num_moved


async def _find_candidates(database: Database, files: Sequence[StoredName]) -> dict[str, StoredName]:
    by_name = {file.name: file for file in files if IMAGE_ID_PATTERN.fullmatch(file.name)}
    async with database.connection() as connection:
        return {name: by_name[name] for name in await find_orphans(connection, list(by_name))}


async def _quarantine(database: Database, target: OriginalInventory, candidates: Mapping[str, StoredName]) -> int:
    """Reads the tables as a whole first, as `daguerre verify` does."""
    if not candidates:
        return 0
    async with database.connection() as connection:
        orphans = await scan_orphans(connection, list(candidates))
    for name in orphans:
        await target.quarantine(candidates[name])
    return len(orphans)
