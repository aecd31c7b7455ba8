"""The folders of originals on a disk, and blocking operations on them.

A descriptor of the storage's folder stands for one disk: a disk that is unmounted or mounted meanwhile cannot make a
file look missing.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from service.config.settings import SettingsError
from service.folders import make_folder
from service.ids import IMAGE_ID_PATTERN, ImageId
from service.storage.files import in_thread
from service.storage.interface import StorageUnavailable
from service.storage.recorded_id import RecordedId
from service.storage.shards import NUM_SHARDS, shard_name, shard_of

Result = TypeVar("Result")

INCOMING = "incoming"

# What `link` raises on file systems without hard links (exFAT, SMB, some of FUSE), and under Linux's
# fs.protected_hardlinks for a file of another user.
_NO_LINKS = frozenset({errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK})


def publish(source: Path, target: Path) -> None:
    """Moves a file to a free path, and never overwrites a file.

    Raises FileExistsError if the path is taken, and OSError. A crash may leave the file under both names. Without hard
    links it is a check and a rename, which are two steps.
    """
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # If another process moved the file, it is missing, and its target is no conflict.
        if not stat.S_ISREG(source.stat().st_mode):
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        source.rename(target)
    else:
        source.unlink(missing_ok=True)  # the image may have been deleted meanwhile


@contextmanager
def open_folder(path: Path) -> Iterator[int]:
    """Yields a descriptor of the folder. Raises OSError."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield folder
    finally:
        os.close(folder)


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable. Raises OSError."""
    with open_folder(path) as folder:
        os.fsync(folder)


def has_folder(name: str, root: int) -> bool:
    """Returns whether the folder exists. Raises OSError."""
    try:
        os.stat(name, dir_fd=root)
    except FileNotFoundError:
        return False
    return True


def require_folder(name: str, root: int) -> None:
    """Raises OSError, but not FileNotFoundError, if the folder is missing."""
    if not has_folder(name, root):
        raise OSError(errno.ENODEV, f"the folder {name} of the storage is missing")


def is_missing(image_id: ImageId, root: int) -> bool:
    """Returns whether neither folder has the file. Raises OSError if one of the folders is missing."""
    shard = shard_of(image_id)
    for folder in (shard, INCOMING, shard):  # it may be published between the first two
        with suppress(FileNotFoundError):
            os.stat(f"{folder}/{image_id}", dir_fd=root)
            return False
    for folder in (shard, INCOMING):
        require_folder(folder, root)
    return True


def remove(image_id: ImageId, root: int) -> None:
    """Removes the file from both folders. Raises OSError if it cannot be removed, or a folder is missing."""
    for folder in (INCOMING, shard_of(image_id)):
        try:
            os.unlink(f"{folder}/{image_id}", dir_fd=root)
        except FileNotFoundError:
            require_folder(folder, root)


def try_write(folder: Path) -> None:
    """Writes and removes a file. Raises OSError."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"x")
        file.flush()


_POLL_INTERVAL_S = 0.1


class StorageFolders:
    """`incoming` holds uploads that are not published; 256 folders, the shards, hold all other originals. They are
    created at the first start, so that uploads need not create any.
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
        # Strings, because this is called for every picture, and Path is slower.
        path = f"{self.folder}/{shard_of(image_id)}/{image_id}"
        return path, f"{self.folder}/{INCOMING}/{image_id}", path  # it may be published between the first two

    def shard_folder(self, number: int) -> Path:
        """Returns one of the folders of published files, 0 to 255."""
        return self.folder / shard_name(number)

    def find_any_file(self) -> str | None:
        """Returns the path of a published file, or None. Folders that cannot be read are skipped. Blocks."""
        for shard in range(NUM_SHARDS):
            with suppress(OSError), os.scandir(self.shard_folder(shard)) as entries:
                for entry in entries:
                    if IMAGE_ID_PATTERN.fullmatch(entry.name) and entry.is_file():
                        return entry.path
        return None

    def is_new(self) -> bool:
        """Returns whether the folders were never created, or are on a disk that is not mounted. Blocks."""
        try:
            self.incoming.stat()
        except FileNotFoundError:
            return True
        except OSError:
            pass  # `prepare` raises it
        return False

    def prepare(self) -> None:
        """Creates the folders. Blocks. Raises SettingsError if they cannot be created or written. A full disk is
        accepted.
        """
        try:
            make_folder(self.incoming)
            for shard in range(NUM_SHARDS):
                make_folder(self.shard_folder(shard))
            sync_folder(self.folder)
        except OSError as error:
            raise self.unusable((error.strerror or str(error)).lower()) from error
        self.require()

    def require(self, *, wait_s: float = 0) -> None:
        """Raises SettingsError if the folders cannot be written, or if no API process creates them within `wait_s`.
        Blocks.

        A worker never creates them: a disk that is not mounted must not look like a new one.
        """
        deadline = time.monotonic() + wait_s
        while True:
            try:
                self.incoming.stat()
                break
            except FileNotFoundError:
                if time.monotonic() >= deadline:
                    raise self.unusable("Daguerre's folders are missing; `daguerre serve` creates them") from None
            except OSError as error:
                raise self.unusable((error.strerror or str(error)).lower()) from error
            time.sleep(_POLL_INTERVAL_S)
        if not os.access(self.incoming, os.W_OK | os.X_OK):
            raise self.unusable(f"user {os.geteuid()} may not write to it")

    def unusable(self, reason: str) -> SettingsError:
        """Returns an error that names the setting and the folder."""
        return SettingsError(f"DAGUERRE_STORAGE (or DAGUERRE_DATA): {self.folder} cannot be used: {reason}")


ID_FILE = "storage-id"
_MAX_ID_BYTES = 64


class StorageRoot:
    """Runs functions on the folder of a storage while the storage of the database is mounted there.

    If a disk is not mounted, its mount point is an empty folder or has other folders of Daguerre, or another disk is
    mounted there. Then files are not lost, and new files would be. So a file in the folder has the id that the database
    records.

    `load_id` loads the id of the database's storage. If the database has none, a folder that has `incoming` and no id
    is accepted; without `load_id`, any folder that has `incoming`.
    """

    def __init__(self, path: Path, load_id: Callable[[], Awaitable[str | None]] | None, threads: Executor) -> None:
        self.path = path
        self.recorded_id = RecordedId(load_id)
        self._threads = threads

    async def call(self, do: Callable[[int], Result], *, needs_id: bool = True) -> Result:
        """Calls `do` in a thread with a descriptor of the folder, and returns its result.

        Raises StorageUnavailable, OSError, and `database-unavailable` if the id has to be loaded. Without `needs_id`,
        the last id is used if the database does not respond soon.
        """
        load = self.recorded_id.load if needs_id else self.recorded_id.load_soon
        if self.recorded_id.value is None:
            await load()
        try:
            return await in_thread(self._threads, partial(self.run, do))
        except StorageUnavailable:
            if not await load():
                raise
        return await in_thread(self._threads, partial(self.run, do))

    def run(self, do: Callable[[int], Result]) -> Result:
        """Like `call`, with the last loaded id. Blocks."""
        with ExitStack() as stack:
            try:
                root = stack.enter_context(open_folder(self.path))
            except FileNotFoundError as error:
                raise _unavailable("its folder is missing") from error
            except NotADirectoryError as error:
                raise StorageUnavailable(errno.ENOTDIR, "the storage is not mounted: its folder is a file") from error
            self._require_id(root)
            return do(root)

    def _require_id(self, root: int) -> None:
        own_id, recorded = read_id(root) if self.recorded_id.is_required else None, self.recorded_id.value
        if own_id != recorded:
            raise _unavailable(f"its {ID_FILE} is {own_id}, and that of this database's storage is {recorded}")
        if own_id is None and not has_folder(INCOMING, root):
            raise _unavailable(f"its folder {INCOMING} is missing")


def _unavailable(reason: str) -> StorageUnavailable:
    return StorageUnavailable(errno.ENODEV, f"the storage is not mounted: {reason}")


def read_id(root: int) -> str | None:
    """Returns the id in the folder of this descriptor, or None if it has none. Blocks; raises OSError."""
    try:
        file = os.open(ID_FILE, os.O_RDONLY | os.O_NONBLOCK, dir_fd=root)
    except FileNotFoundError:
        return None
    try:
        return os.read(file, _MAX_ID_BYTES).decode("ascii", "replace").strip() or None
    finally:
        os.close(file)


def read_folder_id(path: Path) -> str | None:
    """Returns the id in a folder, or None if it has none or is missing. Blocks; raises OSError."""
    try:
        with open_folder(path) as root:
            return read_id(root)
    except FileNotFoundError:
        return None


def create_id(path: Path, storage_id: str | None = None) -> str:
    """Writes an id, by default a new one, into a folder that has none. Returns the id of the folder. Blocks; raises
    OSError.
    """
    draft = path / f".{ID_FILE}-{secrets.token_hex(8)}"
    try:
        with draft.open("x") as file:
            file.write(f"{storage_id or secrets.token_hex(16)}\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):  # another process created it first
            publish(draft, path / ID_FILE)
    finally:
        draft.unlink(missing_ok=True)
    with open_folder(path) as root:
        os.fsync(root)
        own_id = read_id(root)
    if not own_id:
        raise OSError(errno.EIO, f"{ID_FILE} cannot be read", str(path))
    return own_id
