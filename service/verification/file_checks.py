"""Checks that every file has its row, and that the sweep has finished uploads and removals."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from service.deletion.removals import list_removals, remove_files
from service.ids import IMAGE_ID_PATTERN, ImageId
from service.images.integrity import find_orphans, find_sha256, find_without_row, scan_orphans, scan_uploads
from service.storage.interface import BadFolder, StoredName
from service.storage.shards import NUM_SHARDS
from service.verification.context import DATABASE_ERRORS, Context, Problem, Problems, explain, printable

# Longer than what the sweep, which runs every few seconds, leaves unfinished.
_STALE_UPLOAD_S = 3600 + 600
_REMOVAL_S = 120

_MAX_UNFINISHED = 100_000
# The number of names that are compared with the rows at a time, because a scan of the table of images is slow.
_NAMES_BATCH_SIZE = 50_000


async def check_folders(context: Context) -> Problems:
    """Checks that every folder of the storage can be listed. With `repair`, a missing folder is created."""
    for folder in await context.storage.find_bad_folders():
        problem = await _repair_folder(context, folder)
        # A folder that was missing may have held files; only the operator can know that it did not.
        if folder.shard is not None and not (problem.repair and context.options.force):
            context.bad_shards.add(folder.shard)
        yield problem


async def _repair_folder(context: Context, folder: BadFolder) -> Problem:
    what, repair = "it is missing" if folder.is_missing else f"it cannot be read: {explain(folder.error)}", ""
    if folder.is_missing and context.options.repair:
        try:
            await context.storage.create_folder(folder)
            repair = "created"
        except OSError as failure:
            what += f", and cannot be created: {explain(failure)}"
    return Problem(f"folder {printable(folder.location)}", what, repair)


async def check_files(context: Context) -> Problems:
    """Checks that every file belongs to a row, a recorded removal or an upload in flight. With `repair`, the others are
    moved to the quarantine.
    """
    orphans: list[StoredName] = []
    num_files = 0
    async for batch in _list_files(context):
        if isinstance(batch, Problem):
            yield batch
            continue
        num_files += len(batch)
        async for orphan in _find_orphans(context, batch):
            if isinstance(orphan, Problem):
                yield orphan
            else:
                orphans.append(orphan)
    may_move = context.are_rows_complete and context.may_change(len(orphans), num_files)
    for file in orphans:
        problem = await _repair_orphan(context, file, may_move=may_move)
        if problem is not None:
            yield problem
    if context.options.repair and orphans and not may_move:
        yield _refuse_move(context, len(orphans), num_files)


def _refuse_move(context: Context, num_orphans: int, num_files: int) -> Problem:
    if not context.are_rows_complete:
        return Problem("storage", "no file was moved, because not all rows of images can be read")
    return Problem(
        "storage",
        f"{num_orphans} of {num_files} files belong to no image, so none was moved: check that the database is the"
        " right one, and restored; --force moves them",
    )


async def _list_files(context: Context) -> AsyncIterator[Mapping[str, StoredName] | Problem]:
    """Yields files by their names, many at a time."""
    batch: dict[str, StoredName] = {}
    for shard in sorted(set(range(context.storage.num_shards)) - context.bad_shards):
        try:
            async for files in context.storage.list_shard(shard):
                for file in files:
                    if len(batch) >= _NAMES_BATCH_SIZE or file.name in batch:
                        yield batch
                        batch = {}
                    batch[file.name] = file
        except OSError as error:
            yield Problem(f"folder {printable(context.storage.locate_shard(shard))}", f"not read: {explain(error)}")
    yield batch


async def _find_orphans(context: Context, files: Mapping[str, StoredName]) -> AsyncIterator[StoredName | Problem]:
    """Queries the indexes first and then scans the tables, because no file may be moved only because an index lacks its
    row.
    """
    names = [name for name, file in files.items() if _is_in_its_shard(file)]
    for name in sorted(files.keys() - set(names)):
        yield files[name]
    try:
        async with context.database.connection() as connection:
            candidates = await find_orphans(connection, names)
    except DATABASE_ERRORS as error:
        yield Problem("database", f"the indexes cannot find the rows of files: {await context.explain(error)}")
        orphans = candidates = await _scan_orphans(context, names)
    else:
        orphans = await _scan_orphans(context, candidates)
    if len(orphans) < len(candidates):
        lacking = sorted(set(candidates) - set(orphans))
        yield Problem("table images", f"its primary key lacks rows ({len(lacking)}, e.g. {lacking[0]}): reindex it")
    for name in orphans:
        yield files[name]


async def _scan_orphans(context: Context, names: list[str]) -> list[str]:
    """Returns the names without a row. If not all rows can be read, no file may be moved."""
    if not names:
        return names
    try:
        async with context.database.connection() as connection:
            return await scan_orphans(connection, names)
    except DATABASE_ERRORS:
        context.are_rows_complete = False
    async with context.database.connection() as connection:
        return await find_without_row(connection, names)


def _is_in_its_shard(file: StoredName) -> bool:
    return IMAGE_ID_PATTERN.fullmatch(file.name) is not None and not file.is_misplaced


async def _repair_orphan(context: Context, file: StoredName, *, may_move: bool) -> Problem | None:
    """Returns None if the file was deleted meanwhile."""
    what, repair = "it is in the wrong folder" if file.is_misplaced else "no image belongs to it", ""
    try:
        if not await context.storage.has_file(file):
            return None
        if context.options.repair and may_move:
            repair = f"moved to {printable(await context.storage.quarantine(file))}"
    except FileNotFoundError:
        return None
    except OSError as error:
        what += f", and it cannot be moved: {explain(error)}"
    return Problem(f"file {printable(file.location)}", what, repair)


async def check_renditions(context: Context) -> Problems:
    """Checks that the images of renditions exist, if no periodic job does so. With `repair`, the others are removed."""
    if context.renditions.num_shards:
        return
    for shard in range(NUM_SHARDS):
        image_ids = [name for name in await context.renditions.list_images(shard) if IMAGE_ID_PATTERN.fullmatch(name)]
        async with context.database.connection() as connection:
            deleted = [ImageId(name) for name in await find_orphans(connection, image_ids)]
        may_remove = context.options.repair and context.are_rows_complete
        may_remove = may_remove and context.may_change(len(deleted), len(image_ids))
        stuck = await context.renditions.remove_for_images(deleted) if may_remove else set(deleted)
        for image_id in deleted:
            repair = "" if image_id in stuck else "removed"
            yield Problem(f"renditions of image {image_id}", "the image was deleted", repair)


async def check_uploads(context: Context) -> Problems:
    """Checks that no upload stays unfinished. With `repair`, its file is published or removed."""
    stale = await context.storage.list_stale_uploads(_STALE_UPLOAD_S, _MAX_UNFINISHED)
    async with context.database.connection() as connection:
        stored = await find_sha256(connection, stale)
        unknown = [name for name in stale if name not in stored and IMAGE_ID_PATTERN.fullmatch(name)]
        orphans = [ImageId(name) for name in await scan_uploads(connection, unknown)] if unknown else []
    conflicts = await context.storage.find_conflicts(stored)
    may_change = context.options.repair and context.are_rows_complete
    may_remove = may_change and context.may_change(len(orphans), len(stored) + context.num_images)
    # A removal cannot be undone, and beside an empty database every file is an orphan.
    may_remove &= context.num_images > 0 or context.options.force
    if may_change:
        await context.storage.reconcile(stored)
    if may_remove:
        await context.storage.remove_stale_uploads(orphans)
    for image_id in (*stored, *orphans):
        what, repair = _describe_upload(image_id, has_row=image_id in stored, conflicts=conflicts)
        is_left = await context.storage.is_unfinished(image_id)
        subject = f"file {context.storage.locate_upload(image_id)}"
        yield Problem(subject, what, repair if may_change and not is_left else "")
    for name in stale:
        if not IMAGE_ID_PATTERN.fullmatch(name):
            yield await _repair_foreign(context, name)
    if context.options.repair and orphans and not may_remove:
        yield Problem(
            "storage",
            f"{len(orphans)} unfinished uploads belong to no image, so none was removed: check that the database is the"
            " right one, and restored; --force removes them",
        )


def _describe_upload(image_id: ImageId, *, has_row: bool, conflicts: Mapping[ImageId, bool]) -> tuple[str, str]:
    """Returns what is wrong with the file, and what the repair does about it."""
    if not has_row:
        return "its upload was not finished", "removed"
    if image_id not in conflicts:
        return "it was not moved to its folder", "moved"
    if conflicts[image_id]:
        return "a file of no image has its path", "moved, and the other file to `unclaimed`"
    return "another image has its id", "removed"


async def _repair_foreign(context: Context, name: ImageId) -> Problem:
    what, repair = "no upload has such a name", ""
    if context.options.repair:
        try:
            repair = f"moved to {printable(await context.storage.quarantine_upload(name))}"
        except OSError as error:
            what += f", and it cannot be moved: {explain(error)}"
    return Problem(f"file {printable(context.storage.locate_upload(name))}", what, repair)


async def check_removals(context: Context) -> Problems:
    """Checks that the files of deleted images are removed soon. With `repair`, they are removed."""
    removals = await _list_removals(context)
    if context.options.repair:
        await remove_files(context.database, context.storage, context.renditions, removals)
    unfinished = set(await _list_removals(context))
    for image_id in removals:
        repair = "removed" if context.options.repair and image_id not in unfinished else ""
        yield Problem(f"image {image_id}", "it was deleted, but not its file", repair)


async def _list_removals(context: Context) -> list[ImageId]:
    async with context.database.connection() as connection:
        removals = await list_removals(connection, _REMOVAL_S, _MAX_UNFINISHED)
    return [removal.image_id for removal in removals]
