"""The interfaces of the storages of originals and renditions, which every backend implements.

`OriginalStorage` has the only copy of what clients uploaded: an upload is durable before its row is inserted, and gets
its final name only after the row is committed. `RenditionStorage` is a cache that may be lost. The backends are in
packages beside this module, `service.storage.backends` chooses one at start-up, and every backend passes the contract
suite, `tests/integration/storage/test_storage_contract.py`. Methods without `async` block, unless they say otherwise:
call them in threads.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

from service.config.settings import SettingsError
from service.ids import ImageId

# Images whose files could not be published or removed, with the reasons.
Failures: TypeAlias = dict[ImageId, OSError]


class IdTaken(Exception):
    """Another image has this id; retry with a new one."""


class StorageUnavailable(OSError):
    """The storage that belongs to this database cannot be reached, e.g. because its disk is not mounted."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that was found: `path` is for sendfile and for a proxy (X-Accel-Redirect), `data` is the whole content if
    the file is small, and `disk_size` its size on disk in bytes, if known.
    """

    path: Path
    size: int
    modified_ns: int
    data: bytes | None = None
    disk_size: int = 0


class UploadFile(Protocol):
    """The file of an upload while its body arrives."""

    async def write(self, chunks: Sequence[bytes]) -> None:
        """Raises `storage-unavailable`."""

    async def finish(self, chunks: Sequence[bytes]) -> None:
        """Takes the last chunks. A small file may be written only by `OriginalStorage.sync_batch`.

        Raises `storage-unavailable`.
        """

    def abandon(self) -> None:
        """Removes the file. Not a coroutine, so that a cancelled request cleans up as well."""


class OriginalStorage(Protocol):
    """The files that clients uploaded, by the ids of their images."""

    @property
    def id(self) -> str | None:
        """The id that the storage and its database share, or None if it was not loaded yet."""

    @property
    def disks(self) -> Mapping[str, Path]:
        """A folder on each disk of this machine that the storage uses, by the name of the disk in the metrics."""

    @property
    def threads(self) -> Executor:
        """Threads for calls that wait for this storage alone."""

    @property
    def is_local(self) -> bool:
        """Whether short reads of local files may run on the event loop."""

    async def require_available(self) -> None:
        """Raises StorageUnavailable or another OSError if the storage of this database cannot be reached."""

    async def check(self) -> None:
        """Raises Unready or OSError if nothing can be written, or the storage is not the one of this database."""

    # An upload: receive, sync_batch, then the commit of its row, then publish.

    def receive(self, image_id: ImageId) -> AbstractAsyncContextManager[UploadFile]:
        """Opens a file for the body of an upload, which is finished within the block, or removed if the block fails.

        The end of the block may send a large file, and raises `storage-unavailable` and `database-unavailable`.
        """

    async def sync_batch(self, files: Sequence[UploadFile]) -> Sequence[Exception | None]:
        """Makes finished files durable. Returns None, `storage-unavailable` or IdTaken for each.

        Raises `storage-unavailable` if that is the error of all, and `database-unavailable`.
        """

    async def rename_upload(self, file: UploadFile, to: ImageId) -> bool:
        """Gives a file that is not published another id. Returns False if another upload has that id."""

    async def discard(self, file: UploadFile) -> None:
        """Removes a file whose row was not inserted."""

    async def publish(self, image_ids: Sequence[ImageId]) -> frozenset[ImageId]:
        """Gives files whose rows were committed their final names, and never overwrites a file.

        Returns the images whose files are lost. Raises nothing: a file that could not be published can be read anyway,
        and `reconcile` publishes it later.
        """

    # Uploads whose process ended between these steps.

    async def list_stale_uploads(self, age_s: float, limit: int, *, skip: Collection[str] = ()) -> list[ImageId]:
        """Returns files that were not published and not written to for `age_s`, without those in `skip`."""

    async def reconcile(self, expected: Mapping[ImageId, bytes]) -> Failures:
        """Publishes stale uploads whose rows were committed. Their SHA-256 decides between two files of one id."""

    async def remove_stale_uploads(self, image_ids: Sequence[ImageId]) -> Failures:
        """Removes stale uploads without a row."""

    # Published files, and those that are still to be published.

    async def find(self, image_id: ImageId, size: int | None = None) -> StoredFile | None:
        """Returns the file of an image, or None if it is lost. A local copy that does not have the `size` is fetched
        again. Raises `storage-unavailable`.
        """

    async def find_missing(self, image_ids: Sequence[ImageId]) -> frozenset[ImageId]:
        """Returns the images whose files are lost. Raises OSError if the storage cannot be reached."""

    async def list_present(self, image_ids: Sequence[ImageId]) -> list[ImageId]:
        """Returns the images whose files are in this storage. Raises OSError."""

    async def sign(self, image_id: ImageId, seconds: int) -> str | None:
        """Returns a URL at which anyone can read the file for this long, or None if the storage has no such URLs.

        Raises OSError.
        """

    def open_file(self, image_id: ImageId) -> BufferedReader:
        """Opens the file of an image. Raises FileNotFoundError if it is lost, and OSError."""

    def locate(self, image_id: ImageId) -> str:
        """Returns where the published file is, for the log. Does not block."""

    async def paths_for_decoding(self, image_id: ImageId, size: int | None = None) -> tuple[str, ...]:
        """Returns the local paths of an image's file for the sandbox, which opens the first that exists. `size` is as
        for `find`.
        """

    async def drop_damaged_copy(self, image_id: ImageId) -> bool:
        """Removes this machine's copy of an image's file if it has another size. Returns whether it did.

        Raises OSError.
        """

    async def remove(self, image_ids: Sequence[ImageId]) -> Failures:
        """Removes the files of images, as far as they exist. Raises OSError if the storage cannot be reached, and
        `database-unavailable`.
        """


class StorageSetup(Protocol):
    """Operations on the storage of originals at start-up, before it is used."""

    @property
    def location(self) -> str:
        """The location of the storage, for the operator."""

    def require(self, *, wait_s: float = 0) -> None:
        """Raises SettingsError if the storage is not prepared within `wait_s`, or cannot be written."""

    def is_new(self) -> bool:
        """Returns whether the storage was never prepared, or is not mounted."""

    def prepare(self) -> None:
        """Prepares the storage for its first file. Raises SettingsError if it cannot be used."""

    def find_any_file(self) -> str | None:
        """Returns the location of a file that may be an image's, or None if there is none."""

    def read_own_id(self) -> str | None:
        """Returns the id that is written in the storage, or None. Raises OSError."""

    def create_own_id(self, storage_id: str | None = None) -> str:
        """Writes an id into the storage if it has none: this one, or a new one. Returns its id. Raises OSError."""

    def adopt_command(self, storage_id: str | None) -> str:
        """Returns the shell command that makes this storage the one with the id."""

    def unusable(self, reason: str) -> SettingsError:
        """Returns an error that names the setting of the storage."""


class OriginalBackend(OriginalStorage, StorageSetup, Protocol):
    """A backend for originals, with its operations at start-up."""


class UnreadableFile(OSError):
    """One file cannot be read to its end, though its storage can be reached."""


class StoredName(NamedTuple):
    """A file in a shard, as it was listed. `is_misplaced` means that it has the id of an image of another shard."""

    name: str
    location: str
    is_misplaced: bool = False


class BadFolder(NamedTuple):
    """A folder that is missing or cannot be read. `shard` is its number, or None if it is no shard."""

    location: str
    shard: int | None
    error: OSError
    is_missing: bool


class OriginalInventory(OriginalStorage, StorageSetup, Protocol):
    """A backend for originals with the operations of `daguerre verify`, which compares all of it with the rows, and of
    copies from one storage to another.

    The quarantine holds files without an image. They are not deleted, because their rows may be restored.
    """

    num_shards: int
    max_readers: int  # of different files at the same time

    def require_any(self) -> None:
        """Raises SettingsError if there is nothing of the storage to verify. Blocks."""

    async def find_bad_folders(self) -> list[BadFolder]:
        """Returns the folders that cannot be listed."""

    async def create_folder(self, folder: BadFolder) -> None:
        """Creates a missing folder. Raises OSError."""

    def locate_shard(self, number: int) -> str:
        """Returns the location of a shard, for the operator. Does not block."""

    def list_shard(self, number: int) -> AsyncIterator[Sequence[StoredName]]:
        """Yields the files of a shard, many at a time. Raises OSError."""

    async def examine(self, image_id: ImageId, *, read: bool) -> tuple[int, bytes | None]:
        """Returns the size and, with `read`, the SHA-256 of an image's file. Raises what `open_file` does."""

    async def has_file(self, file: StoredName) -> bool:
        """Returns whether a listed file still exists. Raises OSError."""

    async def quarantine(self, file: StoredName) -> str:
        """Moves a file into the quarantine. Returns its new location. Raises FileNotFoundError if it is gone, and
        OSError.
        """

    async def find_quarantined(self, image_id: ImageId, size: int, sha256: bytes) -> str | None:
        """Returns the location of a file in the quarantine that is the image's, or None."""

    async def restore_quarantined(self, image_id: ImageId, size: int, sha256: bytes) -> bool:
        """Makes such a file the image's again. Returns False if there is none. Raises OSError."""

    def prepare_target(self) -> None:
        """Prepares the storage for copies, without an id, so that no process uses it before it is complete. Blocks.

        Raises SettingsError.
        """

    async def find_size(self, image_id: ImageId) -> int | None:
        """Returns the size of an image's file, or None if there is none. Raises OSError."""

    async def export(self, image_id: ImageId, path: Path) -> None:
        """Copies the file of an image to a new local path. Raises FileNotFoundError if it is lost, UnreadableFile, and
        OSError.
        """

    def draft_path(self, image_id: ImageId) -> Path:
        """Returns the local path of a draft that `adopt` can take. Does not block."""

    async def adopt(self, image_id: ImageId, draft: Path, *, replace: bool) -> None:
        """Makes a draft the file of an image, completely or not at all. Raises FileExistsError if there is one and it
        does not `replace` that, and OSError.
        """

    async def find_conflicts(self, expected: Mapping[ImageId, bytes]) -> dict[ImageId, bool]:
        """Returns the stale uploads, whose rows have these SHA-256, for whose id another file is published, and whether
        that file belongs to no image.
        """

    def locate_upload(self, name: str) -> str:
        """Returns the location of an unfinished upload, for the operator. Does not block."""

    async def is_unfinished(self, name: str) -> bool:
        """Returns whether there is an unfinished upload of this name."""

    async def quarantine_upload(self, name: str) -> str:
        """Moves an unfinished upload, whose name need not be an id, into the quarantine. Returns its new location.

        Raises OSError.
        """


class RenditionKey(NamedTuple):
    """`digest` is 32 hexadecimal digits."""

    image_id: ImageId
    digest: str


class RenditionStorage(Protocol):
    """The cache of renditions. A periodic job compares it with the rows, one of `num_shards` shards at a time."""

    num_shards: int

    @property
    def threads(self) -> Executor:
        """Threads for calls that wait for this storage alone."""

    @property
    def location(self) -> str:
        """The location of the renditions, for the log."""

    @property
    def disks(self) -> Mapping[str, Path]:
        """A folder on each disk of this machine that the storage uses, by the name of the disk in the metrics."""

    def prepare(self) -> None:
        """Prepares the storage. Raises SettingsError if it cannot be used. A full or read-only disk is accepted."""

    def path(self, key: RenditionKey) -> Path:
        """Returns the local path that a rendition has or would have. Does not block."""

    async def find(self, key: RenditionKey, is_complete: Callable[[StoredFile], bool]) -> StoredFile | None:
        """Returns a rendition, or None if there is none. An incomplete one is removed.

        Raises `storage-unavailable`.
        """

    async def write(self, key: RenditionKey, data: bytes) -> StoredFile:
        """Writes a rendition, completely or not at all. Raises OSError."""

    async def write_patched(self, key: RenditionKey, source: Path, patches: Sequence[tuple[int, bytes]]) -> StoredFile:
        """Writes a copy of a local file in which each patch replaces the bytes at its offset. Raises OSError."""

    async def remove(self, keys: Collection[RenditionKey]) -> set[RenditionKey]:
        """Removes renditions, and returns those that could not be removed. Raises OSError if the storage cannot be
        reached.
        """

    async def remove_for_images(self, image_ids: Collection[ImageId]) -> set[ImageId]:
        """Removes all renditions of these images, including those without a row.

        Returns the images that still have one, because it could not be removed. Raises OSError if the storage cannot be
        reached.
        """

    async def list_images(self, number: int) -> list[ImageId]:
        """Returns the images that have renditions in one of the 256 shards. Raises OSError."""

    async def list_shard(self, number: int, age_s: float) -> dict[RenditionKey, int]:
        """Returns the renditions in one shard that are older than `age_s`, with their sizes on disk."""

    async def remove_stale_drafts(self, age_s: float) -> None:
        """Removes unfinished files that did not change for `age_s`."""
