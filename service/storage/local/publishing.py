"""Moves uploads from `incoming` to their final paths, and decides between two files of one id."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import structlog

from service.ids import ImageId
from service.storage.interface import Failures
from service.storage.local.disk import StorageFolders, publish
from service.storage.local.quarantine import Quarantine

log = structlog.get_logger("service")


class Publisher:
    """Every method blocks."""

    def __init__(self, folders: StorageFolders, quarantine: Quarantine) -> None:
        self._folders = folders
        self._quarantine = quarantine

    def publish(self, image_ids: Iterable[ImageId]) -> Failures:
        """Publishes uploads whose rows were just committed. An error of one file does not affect others.

        The ids were free when the rows were inserted, so a file at the final path is an orphan.
        """

        def publish_one(image_id: ImageId) -> None:
            self._publish(image_id, on_conflict=self._replace_orphan)

        return for_each(image_ids, publish_one)

    def reconcile(self, expected: Mapping[ImageId, bytes]) -> Failures:
        """Publishes uploads whose rows were committed some time ago and have these SHA-256.

        If a file is already published, the SHA-256 decides which of the two is the image. Usually it is the published
        one: the other was received under an id that was taken, and its process crashed before it got another id. It is
        removed. Or a crash left one file under both names.
        """

        def reconcile_one(image_id: ImageId) -> None:
            self._publish(image_id, on_conflict=lambda _: self._resolve_conflict(image_id, expected[image_id]))

        return for_each(expected, reconcile_one)

    def find_conflicts(self, expected: Mapping[ImageId, bytes]) -> dict[ImageId, bool]:
        """Returns the uploads, whose rows have these SHA-256, for whose id another file is published, and whether that
        file is an orphan.
        """
        conflicts = {}
        for image_id, sha256 in expected.items():
            with suppress(OSError):
                if not self._folders.incoming_path(image_id).samefile(self._folders.path(image_id)):
                    conflicts[image_id] = False
                    conflicts[image_id] = self._is_orphan_published(image_id, sha256)
        return conflicts

    def restore(self, image_id: ImageId, size: int, sha256: bytes) -> Path | None:
        """Moves the file of this content from the quarantine to its final path; a file there goes into the quarantine.

        Returns where it was, or None if there is no such file. Raises OSError.
        """
        source = self._quarantine.find(image_id, size, sha256)
        if source is not None:
            target = self._folders.path(image_id)
            if os.path.lexists(target):
                self._quarantine.add(target)
            publish(source, target)
        return source

    def remove_upload(self, image_id: ImageId) -> None:
        """Raises OSError if a file that is not published cannot be removed."""
        self._folders.incoming_path(image_id).unlink(missing_ok=True)

    def _publish(self, image_id: ImageId, *, on_conflict: Callable[[ImageId], None]) -> None:
        try:
            publish(self._folders.incoming_path(image_id), self._folders.path(image_id))
        except FileExistsError:
            on_conflict(image_id)
        except FileNotFoundError:
            if not self._folders.path(image_id).exists():  # else another process published it
                raise

    def _resolve_conflict(self, image_id: ImageId, sha256: bytes) -> None:
        if self._is_orphan_published(image_id, sha256):
            self._replace_orphan(image_id)
        else:
            self.remove_upload(image_id)

    def _is_orphan_published(self, image_id: ImageId, sha256: bytes) -> bool:
        """Returns whether the upload is the image, and the published file is not. Raises OSError."""
        incoming, path = self._folders.incoming_path(image_id), self._folders.path(image_id)
        return not incoming.samefile(path) and _digest(path) != sha256 and _digest(incoming) == sha256

    def _replace_orphan(self, image_id: ImageId) -> None:
        """Publishes an upload in place of a file that belongs to no image, e.g. because the database was restored from
        an older backup than the files. It may be the only copy, so it goes into the quarantine.
        """
        incoming, path = self._folders.incoming_path(image_id), self._folders.path(image_id)
        if incoming.samefile(path):
            incoming.unlink(missing_ok=True)
        else:
            log.warning("storage.orphan_quarantined", image_id=image_id, path=str(self._quarantine.add(path)))
            publish(incoming, path)


def for_each(image_ids: Iterable[ImageId], do: Callable[[ImageId], None]) -> Failures:
    """Calls `do` for every image, and returns the errors."""
    failures = {}
    for image_id in image_ids:
        try:
            do(image_id)
        except OSError as error:
            failures[image_id] = error
    return failures


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
