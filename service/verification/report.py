"""Runs the checks one after the other and tells what they found."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping

from service.database import Database
from service.ids import ImageId, parse_image_id
from service.queue import jobs
from service.settings import Settings
from service.sizes import readable
from service.storage.disk import DiskStorage
from service.storage.renditions import RenditionFiles
from service.verification.checks import Problem, Verification

# A count of all that one account stores can take long.
_COMMAND_TIMEOUT_S = 600


async def verify(
    settings: Settings,
    *,
    read: bool,
    repair: bool,
    drop_missing: bool,
    expected: Mapping[ImageId, bytes],
    tell: Callable[[str], None],
) -> bool:
    """Tell each problem as it is found, and a summary. Whether nothing is wrong any more.

    Raises SettingsError where the storage cannot be used, and what the checks raise.
    """
    storage = DiskStorage(settings.storage_folder)
    storage.require()
    redis = jobs.open_redis(settings.redis_url)
    try:
        async with Database.open(
            settings.database_url, connections=1, command_timeout_s=_COMMAND_TIMEOUT_S
        ) as database:
            verification = Verification(
                database,
                storage,
                RenditionFiles(settings.renditions_folder),
                jobs.JobQueue(redis),
                read=read,
                repair=repair,
                drop_missing=drop_missing,
            )
            found = mended = 0
            async for problem in _check_all(verification, expected):
                found += 1
                mended += bool(problem.mended)
                tell(f"{problem.subject}: {problem.what}" + (f"; {problem.mended}" if problem.mended else ""))
    finally:
        await redis.aclose(close_connection_pool=True)
    images, problems = _count(verification.seen_images, "image"), _count(found, "problem")
    looked_at = f"{images}, {readable(verification.seen_bytes)}{'' if read else ', sizes only'}"
    tell(f"{looked_at}: {f'{problems}, {mended} of them mended' if found else 'all is well'}.")
    return mended == found


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


async def _check_all(verification: Verification, expected: Mapping[ImageId, bytes]) -> AsyncIterator[Problem]:
    for check in (
        verification.check_images(),
        verification.check_expected(expected),
        verification.check_files(),
        verification.check_leftovers(),
        verification.check_pending(),
        verification.check_accounts(),
    ):
        async for problem in check:
            yield problem


def parse_expected(lines: Iterable[str]) -> dict[ImageId, bytes]:
    """Of lines `ID SHA256`, the SHA-256 in hexadecimal. Raises ValueError."""
    expected = {}
    for number, line in enumerate(lines, 1):
        try:
            name, sha256 = line.split()
            expected[parse_image_id(name)] = bytes.fromhex(sha256)
        except Exception:
            raise ValueError(f"line {number} is not `ID SHA256`") from None
    return expected
