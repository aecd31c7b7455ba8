"""The folders of originals: where each file is, and how a start makes or checks them."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from service.config.settings import SettingsError
from service.folders import make_folder
from service.ids import IMAGE_ID_PATTERN, ImageId
from service.storage.local.disk import INCOMING, NUM_SHARDS, shard_of, sync_folder

_POLL_INTERVAL_S = 0.1


class StorageFolders:
    """`incoming` holds uploads that are not published; 256 folders, the shards, hold all other originals. They are made
    at the first start, so that a new image makes none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.incoming = folder / INCOMING

    def path(self, image_id: ImageId) -> Path:
        """Returns the final path of an image's file."""
        return self.folder / shard_of(image_id) / image_id

    def incoming_path(self, image_id: ImageId) -> Path:
        """Returns the path of a file that is not published."""
        return self.incoming / image_id

    def candidate_paths(self, image_id: ImageId) -> tuple[str, str, str]:
        """Returns the paths that an image's file may have after the commit of its row, in the order to try."""
        path = str(self.path(image_id))
        return path, str(self.incoming_path(image_id)), path  # it may be published between the first two

    def shard_folder(self, number: int) -> Path:
        """Returns one of the folders of published files, 0 to 255."""
        return self.folder / f"{number:02x}"

    def list_shard(self, number: int) -> list[Path]:
        """Returns the files in one of these folders. Blocks; raises OSError."""
        return list(self.shard_folder(number).iterdir())

    def find_any_file(self) -> Path | None:
        """Returns a published file, or None if there is none. Folders that cannot be read are skipped. Blocks."""
        for shard in range(NUM_SHARDS):
            with suppress(OSError), os.scandir(self.shard_folder(shard)) as entries:
                for entry in entries:
                    if IMAGE_ID_PATTERN.fullmatch(entry.name) and entry.is_file():
                        return Path(entry.path)
        return None

    def is_new(self) -> bool:
        """Returns whether the folders were never made, or are on a disk that is not mounted. Blocks."""
        try:
            self.incoming.stat()
        except FileNotFoundError:
            return True
        except OSError:
            pass  # `prepare` raises it
        return False

    def prepare(self) -> None:
        """Makes the folders. Blocks; raises SettingsError if they cannot be made or written; a full disk can."""
        try:
            make_folder(self.incoming)
            for shard in range(NUM_SHARDS):
                make_folder(self.shard_folder(shard))
            sync_folder(self.folder)
        except OSError as error:
            raise self.unusable((error.strerror or str(error)).lower()) from error
        self.require()

    def require(self, *, wait_s: float = 0) -> None:
        """Raises SettingsError if the folders cannot be written, or no API process makes them within `wait_s`. Blocks.

        A worker never makes them: a disk that is not mounted must not look like a new one.
        """
        deadline = time.monotonic() + wait_s
        while True:
            try:
                self.incoming.stat()
                break
            except FileNotFoundError:
                if time.monotonic() >= deadline:
                    raise self.unusable("Daguerre's folders are missing; `daguerre serve` makes them") from None
            except OSError as error:
                raise self.unusable((error.strerror or str(error)).lower()) from error
            time.sleep(_POLL_INTERVAL_S)
        if not os.access(self.incoming, os.W_OK | os.X_OK):
            raise self.unusable(f"user {os.geteuid()} may not write to it")

    def unusable(self, reason: str) -> SettingsError:
        """Returns an error that names the setting and the folder."""
        return SettingsError(f"DAGUERRE_STORAGE (or DAGUERRE_DATA): {self.folder} cannot be used: {reason}")
