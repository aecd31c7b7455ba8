"""Whether every file has its row, and whether the sweep has finished what it should have."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from service.deletion.removals import list_removals, remove_files
from service.ids import IMAGE_ID_PATTERN, ImageId
from service.images.audit import find_orphans, find_sha256, find_without_row, scan_orphans
from service.storage.local.disk import NUM_SHARDS
from service.verification.context import DATABASE_ERRORS, Context, Problem, Problems, explain, printable

# Each is beyond what the sweep, which runs every few seconds, leaves behind.
_ABANDONED_S = 3600 + 600
_REMOVAL_S = 120

_MAX_LEFTOVERS = 100_000
# Names that are looked for at once; a scan of the table of images takes long.
_MAX_NAMES = 50_000


async def check_folders(context: Context) -> Problems:
    """Every folder of the storage can be listed. With `repair`, one that is missing is made."""
    storage = context.storage
    for folder, shard in [
        (storage.incoming, None),
        *((storage.shard_folder(shard), shard) for shard in range(NUM_SHARDS)),
    ]:
        error = await asyncio.to_thread(_try_folder, folder)
        if error is not None:
            if shard is not None:
                context.bad_shards.add(shard)
            yield await asyncio.to_thread(_look_at_folder, context, folder, error)


def _try_folder(folder: Path) -> OSError | None:
    try:
        with os.scandir(folder) as entries:
            next(entries, None)
    except OSError as error:
        return error
    return None


def _look_at_folder(context: Context, folder: Path, error: OSError) -> Problem:
    is_missing = isinstance(error, FileNotFoundError) and not os.path.lexists(folder)
    what, mended = "it is missing" if is_missing else f"it cannot be read: {explain(error)}", ""
    if is_missing and context.options.repair:
        try:
            folder.mkdir(mode=0o700)
            mended = "made"
        except OSError as failure:
            what += f", and cannot be made: {explain(failure)}"
    return Problem(f"folder {printable(folder)}", what, mended)


async def check_files(context: Context) -> Problems:
    """Every file has its row, but for what is on its way out. With `repair`, others are set aside."""
    unclaimed: list[Path] = []
    num_files = 0
    async for batch in _list_files(context):
        if isinstance(batch, Problem):
            yield batch
            continue
        num_files += len(batch)
        async for found in _find_unclaimed(context, batch):
            if isinstance(found, Problem):
                yield found
            else:
                unclaimed.append(found)
    may_move = context.are_rows_whole and context.may_change(len(unclaimed), num_files)
    for path in unclaimed:
        problem = await asyncio.to_thread(_look_at_unclaimed, context, path, may_move=may_move)
        if problem is not None:
            yield problem
    if context.options.repair and unclaimed and not may_move:
        yield _refuse_move(context, len(unclaimed), num_files)


def _refuse_move(context: Context, num_unclaimed: int, num_files: int) -> Problem:
    if not context.are_rows_whole:
        return Problem("storage", "no file was moved, since not all rows of images can be read")
    return Problem(
        "storage",
        f"{num_unclaimed} of {num_files} files belong to no image, so none was moved: is this the right database, and"
        " restored? If it is, --force moves them",
    )


async def _list_files(context: Context) -> AsyncIterator[Mapping[str, Path] | Problem]:
    """Files by their names, many at once."""
    batch: dict[str, Path] = {}
    for shard in sorted(set(range(NUM_SHARDS)) - context.bad_shards):
        try:
            paths = await asyncio.to_thread(context.storage.list_shard, shard)
        except OSError as error:
            yield Problem(f"folder {printable(context.storage.shard_folder(shard))}", f"not read: {explain(error)}")
            continue
        for path in paths:
            if len(batch) >= _MAX_NAMES or path.name in batch:
                yield batch
                batch = {}
            batch[path.name] = path
    yield batch


async def _find_unclaimed(context: Context, files: Mapping[str, Path]) -> AsyncIterator[Path | Problem]:
    """Both by the indexes and by a scan, since a file must not be moved because an index lacks its row."""
    names = [name for name, path in files.items() if _is_in_its_place(context, path)]
    for name in sorted(files.keys() - set(names)):
        yield files[name]
    try:
        async with context.database.connection() as connection:
            candidates = await find_orphans(connection, names)
    except DATABASE_ERRORS as error:
        yield Problem("database", f"files are not found by the indexes: {await context.explain(error)}")
        unclaimed = candidates = await _scan_unclaimed(context, names)
    else:
        unclaimed = await _scan_unclaimed(context, candidates)
    if len(unclaimed) < len(candidates):
        lacking = sorted(set(candidates) - set(unclaimed))
        yield Problem("table images", f"its key lacks rows ({len(lacking)}, e.g. {lacking[0]}): reindex the table")
    for name in unclaimed:
        yield files[name]


async def _scan_unclaimed(context: Context, names: list[str]) -> list[str]:
    """If not all rows can be read, those without a row as far as that is known, and no file is moved."""
    if not names:
        return names
    try:
        async with context.database.connection() as connection:
            return await scan_orphans(connection, names)
    except DATABASE_ERRORS:
        context.are_rows_whole = False
    async with context.database.connection() as connection:
        return await find_without_row(connection, names)


def _is_in_its_place(context: Context, path: Path) -> bool:
    return IMAGE_ID_PATTERN.fullmatch(path.name) is not None and context.storage.path(ImageId(path.name)) == path


def _look_at_unclaimed(context: Context, path: Path, *, may_move: bool) -> Problem | None:
    """None if it was deleted meanwhile."""
    is_misplaced = IMAGE_ID_PATTERN.fullmatch(path.name) is not None and not _is_in_its_place(context, path)
    what, mended = "it is not in the folder of its name" if is_misplaced else "no image belongs to it", ""
    try:
        path.lstat()
        if context.options.repair and may_move:
            mended = f"moved to {printable(context.storage.quarantine.add(path))}"
    except FileNotFoundError:
        return None
    except OSError as error:
        what += f", and it cannot be moved: {explain(error)}"
    return Problem(f"file {printable(path)}", what, mended)


async def check_received(context: Context) -> Problems:
    """Received files without an end. With `repair`, they are moved to their places, or removed."""
    abandoned = await context.storage.list_stale_uploads(_ABANDONED_S, _MAX_LEFTOVERS)
    async with context.database.connection() as connection:
        existing = await find_sha256(connection, abandoned)
        unknown = [name for name in abandoned if name not in existing and IMAGE_ID_PATTERN.fullmatch(name)]
        lost = [ImageId(name) for name in await scan_orphans(connection, unknown)] if unknown else []
    conflicts = await asyncio.to_thread(context.storage.publisher.find_conflicts, existing)
    may_change = context.options.repair and context.are_rows_whole
    may_remove = may_change and context.may_change(len(lost), len(existing) + context.num_images)
    # What was removed cannot be taken back: of an empty database every file is one without a row.
    may_remove &= context.num_images > 0 or context.options.force
    if may_change:
        await context.storage.reconcile(existing)
    if may_remove:
        await context.storage.remove_stale_uploads(lost)
    for image_id in (*existing, *lost):
        what, done = _describe_received(image_id, is_accepted=image_id in existing, conflicts=conflicts)
        is_left = await asyncio.to_thread(os.path.lexists, context.storage.incoming_path(image_id))
        yield Problem(f"file incoming/{image_id}", what, done if may_change and not is_left else "")
    for name in abandoned:
        if not IMAGE_ID_PATTERN.fullmatch(name):
            yield await asyncio.to_thread(_look_at_strange, context, name)
    if context.options.repair and lost and not may_remove:
        yield Problem(
            "storage",
            f"{len(lost)} received files belong to no image, so none was removed: is this the right database, and"
            " restored? If it is, --force removes them",
        )


def _describe_received(image_id: ImageId, *, is_accepted: bool, conflicts: Mapping[ImageId, bool]) -> tuple[str, str]:
    """What is wrong with the file, and what the repair does about it."""
    if not is_accepted:
        return "it was never accepted", "removed"
    if image_id not in conflicts:
        return "it was not moved to its place", "moved"
    if conflicts[image_id]:
        return "another file is in its place", "moved, and the other one to `unclaimed`"
    return "it came under an id that was taken", "removed"


def _look_at_strange(context: Context, name: ImageId) -> Problem:
    what, mended = "no upload has such a name", ""
    if context.options.repair:
        try:
            mended = f"moved to {printable(context.storage.quarantine.add(context.storage.incoming_path(name)))}"
        except OSError as error:
            what += f", and it cannot be moved: {explain(error)}"
    return Problem(f"file incoming/{printable(name)}", what, mended)


async def check_removals(context: Context) -> Problems:
    """Files that are to be removed are gone after some time. With `repair`, they are removed."""
    removals = await _list_removals(context)
    if context.options.repair:
        await remove_files(context.database, context.storage, context.renditions, removals)
    left = set(await _list_removals(context))
    for image_id in removals:
        mended = "removed" if context.options.repair and image_id not in left else ""
        yield Problem(f"image {image_id}", "it is gone and its file still to be removed", mended)


async def _list_removals(context: Context) -> list[ImageId]:
    async with context.database.connection() as connection:
        return [one.image_id for one in await list_removals(connection, _REMOVAL_S, _MAX_LEFTOVERS)]
