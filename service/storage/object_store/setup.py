"""The operations on an object store at start-up."""

from __future__ import annotations

import errno
import secrets
import shlex
import time
from contextlib import suppress

from service.config.settings import SettingsError
from service.ids import IMAGE_ID_PATTERN
from service.storage.object_store.cache import FileCache
from service.storage.object_store.client import ObjectStore

# The object with the id of the storage marks the store as one of Daguerre.
ID_OBJECT = "storage-id"
_POLL_INTERVAL_S = 0.5


class ObjectSetup:
    """The `StorageSetup` of an object store. Every method blocks."""

    def __init__(self, store: ObjectStore, cache: FileCache) -> None:
        self._store = store
        self._cache = cache

    @property
    def location(self) -> str:
        return str(self._store.url)

    def is_new(self) -> bool:
        return self.read_own_id() is None

    def prepare(self) -> None:
        """Creates the id, and the folders of the local copies. Raises SettingsError if they cannot be used."""
        self._cache.prepare()
        try:
            self.create_own_id()
        except OSError as error:
            raise self.unusable(error.strerror or str(error)) from error

    def require(self, *, wait_s: float = 0) -> None:
        """Raises SettingsError if no API process prepares the store within `wait_s`, or it cannot be used. Blocks."""
        deadline = time.monotonic() + wait_s
        try:
            while self.is_new():
                if time.monotonic() >= deadline:
                    raise self.unusable(f"it has no object {ID_OBJECT}; `daguerre serve` creates it")
                time.sleep(_POLL_INTERVAL_S)
        except OSError as error:
            raise self.unusable(error.strerror or str(error)) from error
        self._cache.prepare()

    def find_any_file(self) -> str | None:
        for folder in self._store.list_folders_now():
            found = self._store.find_any_now(folder)
            if found is not None and IMAGE_ID_PATTERN.fullmatch(found.name.removeprefix(f"{folder}/")):
                return f"{self._store.url}/{found.name}"
        return None

    def read_own_id(self) -> str | None:
        try:
            return decode_id(self._store.read_now(ID_OBJECT))
        except FileNotFoundError:
            return None

    def create_own_id(self, storage_id: str | None = None) -> str:
        own_id = self.read_own_id() or self._create_own_id(storage_id or secrets.token_hex(16))
        with suppress(FileExistsError):
            self._store.create_now(ID_OBJECT, _encode_id(own_id))
            raise OSError(errno.ENOTSUP, "it replaces objects that it should only create (If-None-Match: *)")
        return own_id

    def _create_own_id(self, new_id: str) -> str:
        with suppress(FileExistsError):  # another process was faster
            self._store.create_now(ID_OBJECT, _encode_id(new_id))
        own_id = self.read_own_id()
        if own_id is None:
            raise OSError(errno.EIO, f"the object {ID_OBJECT} cannot be read")
        return own_id

    def adopt_command(self, storage_id: str | None) -> str:
        target = shlex.quote(f"{self._store.url}/{ID_OBJECT}")
        return f"echo {storage_id or secrets.token_hex(16)} | aws s3 cp - {target}"

    def unusable(self, reason: str) -> SettingsError:
        return SettingsError(f"DAGUERRE_STORAGE: {self._store.url} cannot be used: {reason}")


def _encode_id(storage_id: str) -> bytes:
    return f"{storage_id}\n".encode()


def decode_id(content: bytes) -> str | None:
    """Returns the id in the object, or None if it is empty."""
    return content.decode("ascii", "replace").strip() or None
