"""The client of an object store: obstore, with time limits, bounded concurrency, and errors as if it were a disk."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import mmap
import os
import time
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError

from service.config.values import StoreUrl
from service.storage.interface import StorageUnavailable
from service.storage.object_store.connection import open_store

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from obstore import Attributes as StoreAttributes

# From this size on a file is sent in parts, so that a lost connection costs one part, and not the whole file.
MULTIPART_BYTES = 16 << 20
_PART_BYTES = 8 << 20
_PARTS_IN_FLIGHT = 2
# Requests in flight of one process. Bodies are in memory, so those of larger ones have fewer slots.
_SMALL_BYTES = 256 << 10
_MAX_REQUESTS, _MAX_LARGE_UPLOADS, _MAX_DOWNLOADS = 64, 4, 16
# The maximum time to wait for a slot. A store that is so slow accepts requests faster than it finishes them.
_MAX_SLOT_WAIT_S = 60.0
_CHUNK_BYTES = 1 << 20
# While the store does not respond, it is tried this often.
_TRY_INTERVAL_S = 1.0
# A request that fails sooner may fail because of its object alone. Several in a row are an outage.
_QUICK_S, _MAX_QUICK_FAILURES = 2.0, 3
_LIST_CHUNK = 1000
_MAX_ERROR_CHARACTERS = 300

# `service.dependencies.reasons` explains these numbers.
REFUSED = errno.EKEYREJECTED
NO_BUCKET = errno.ENXIO
NO_RESPONSE = errno.ECOMM

# User-defined metadata of an object.
_NOTE = "daguerre"


class Attributes(NamedTuple):
    """What the store keeps beside the content: the type for browsers, and a note for Daguerre itself."""

    media_type: str = "application/octet-stream"
    note: str = ""


class ObjectInfo(NamedTuple):
    """`name` is relative to the store's prefix."""

    name: str
    size: int
    modified_ns: int


class ObjectStore:
    """The objects below the prefix of a URL.

    Raises FileNotFoundError for an object that does not exist, StorageUnavailable if the store does not respond or
    refuses a request, and OSError. Methods without `async` block.

    With `fails_fast`, requests fail at once while the store does not respond. A command needs each answer, and sends
    few requests at a time.
    """

    def __init__(self, url: StoreUrl, environment: Mapping[str, str] = os.environ, *, fails_fast: bool = True) -> None:
        """Does not connect. Raises SettingsError if the credentials of the environment cannot be used."""
        self.url = url
        self._fails_fast = fails_fast
        self._store = open_store(url, environment)
        self._requests = asyncio.Semaphore(_MAX_REQUESTS)
        self._large_uploads = asyncio.Semaphore(_MAX_LARGE_UPLOADS)
        self._downloads = asyncio.Semaphore(_MAX_DOWNLOADS)
        self._failures = 0  # in a row
        self._is_failing = False
        self._try_again_at = 0.0

    async def put(self, name: str, data: bytes, attributes: Attributes, *, replace: bool = False) -> None:
        """Writes an object, completely or not at all. Raises FileExistsError if there is one of this name and it does
        not `replace` that.
        """
        async with self._request(name, self._choose_slots(len(data)), writes=True):
            await self._put(name, data, attributes, replace=replace)

    async def put_file(
        self, name: str, path: Path, size: int, attributes: Attributes, *, replace: bool = False
    ) -> None:
        """Like `put`, for a local file of this size."""
        if size < MULTIPART_BYTES:
            async with self._request(name, self._choose_slots(size), writes=True):
                await self._put(name, await asyncio.to_thread(_read_draft, path, size), attributes, replace=replace)
            return
        # A store has no condition for an upload in parts. The caller reserves its names, so that this check is enough.
        if not replace and await self.find(name) is not None:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        async with self._request(name, self._large_uploads, writes=True):
            await asyncio.to_thread(_require_draft, path)
            await obstore.put_async(
                self._store,
                name,
                path,
                attributes=_encode(attributes),
                chunk_size=_PART_BYTES,
                max_concurrency=_PARTS_IN_FLIGHT,
            )

    async def _put(self, name: str, data: bytes | mmap.mmap, attributes: Attributes, *, replace: bool) -> None:
        await obstore.put_async(
            self._store,
            name,
            data,
            attributes=_encode(attributes),
            mode="overwrite" if replace else "create",
            use_multipart=False,
        )

    def _choose_slots(self, size: int) -> asyncio.Semaphore:
        return self._requests if size <= _SMALL_BYTES else self._large_uploads

    async def read(self, name: str) -> bytes:
        async with self._request(name, self._requests):
            return bytes(await (await obstore.get_async(self._store, name)).bytes_async())

    async def find(self, name: str) -> tuple[ObjectInfo, Attributes] | None:
        """Returns the object's size, time and attributes, or None if there is none."""
        try:
            async with self._request(name, self._requests):
                result = await obstore.get_async(self._store, name, options={"head": True})
        except FileNotFoundError:
            return None
        return _info(result.meta), _decode(result.attributes)

    async def download(self, name: str, path: Path) -> tuple[ObjectInfo, Attributes]:
        """Writes the content of an object to a new local file."""
        async with self._request(name, self._downloads):
            result = await obstore.get_async(self._store, name)
            file = await asyncio.to_thread(_create, path)
            with file:
                async for chunk in result.stream(_CHUNK_BYTES):
                    await asyncio.to_thread(file.write, chunk)
        return _info(result.meta), _decode(result.attributes)

    async def size(self, name: str) -> int:
        async with self._request(name, self._requests):
            return (await obstore.head_async(self._store, name))["size"]

    async def digest(self, name: str) -> tuple[int, bytes]:
        """Reads an object. Returns its size and SHA-256."""
        size, digest = 0, hashlib.sha256()
        async with self._request(name, self._downloads):
            result = await obstore.get_async(self._store, name)
            async for chunk in result.stream(_CHUNK_BYTES):
                size += len(chunk)
                await asyncio.to_thread(digest.update, chunk)
        return size, digest.digest()

    async def move(self, source: str, target: str) -> None:
        """Copies an object within the store, and then deletes the source. Replaces a target."""
        async with self._request(source, self._requests):
            await obstore.copy_async(self._store, source, target)
        await self.delete([source])

    async def delete(self, names: Collection[str]) -> None:
        """Deletes objects. Those that do not exist are no error."""
        if not names:
            return
        # S3 says nothing of objects that do not exist, and the others nothing of a bucket.
        with suppress(FileNotFoundError):
            async with self._request(next(iter(names)), self._requests, writes=self.url.scheme == "s3"):
                await obstore.delete_async(self._store, list(names))

    async def list_all(self, prefix: str) -> AsyncIterator[list[ObjectInfo]]:
        """Yields the objects in a folder, i.e. whose names begin with the prefix and a slash, up to 1,000 at a time."""
        stream = obstore.list(self._store, prefix, chunk_size=_LIST_CHUNK)
        while True:
            async with self._request(prefix, self._requests):
                try:
                    chunk = await anext(stream)
                except StopAsyncIteration:
                    return
            yield [_info(meta) for meta in chunk]

    async def sign(self, name: str, seconds: int) -> str:
        """Returns a URL at which anyone can read the object for this long. Does not ask the store."""
        with _errors(name):
            return await obstore.sign_async(self._store, "GET", name, timedelta(seconds=seconds))

    def read_now(self, name: str) -> bytes:
        """Blocks."""
        with _errors(name):
            return bytes(obstore.get(self._store, name).bytes())

    def create_now(self, name: str, data: bytes) -> None:
        """Like `create`. Blocks."""
        with _errors(name, writes=True):
            obstore.put(self._store, name, data, mode="create", use_multipart=False)

    def open_now(self, name: str) -> BufferedReader:
        """Opens an object for reading from its start. Blocks, and so does the reader, which raises OSError."""
        with _errors(name):
            return BufferedReader(_Reader(name, obstore.get(self._store, name)), _CHUNK_BYTES)

    def list_folders_now(self) -> list[str]:
        """Returns the first parts of all names that have several. Blocks."""
        with _errors(""):
            folders = obstore.list_with_delimiter(self._store)["common_prefixes"]
        return [folder.strip("/") for folder in folders]

    def find_any_now(self, prefix: str) -> ObjectInfo | None:
        """Returns an object whose name begins with the prefix, or None. Blocks."""
        with _errors(prefix):
            for chunk in obstore.list(self._store, prefix, chunk_size=1):
                for meta in chunk:
                    return _info(meta)
        return None

    @asynccontextmanager
    async def _request(self, name: str, slots: asyncio.Semaphore, *, writes: bool = False) -> AsyncIterator[None]:
        """Waits for a slot. While the store does not respond, one request a second tries it, and all others fail at
        once: otherwise each would wait for the time limit.
        """
        async with self._slot(slots):
            started_at = time.monotonic()
            if started_at < self._try_again_at:
                raise StorageUnavailable(NO_RESPONSE, "the object store did not respond to earlier requests")
            if self._is_failing:
                self._try_again_at = started_at + _TRY_INTERVAL_S
            try:
                with _errors(name, writes=writes):
                    yield
            except OSError as error:
                if error.errno == NO_RESPONSE:
                    self._count_failure(started_at)
                else:  # it has responded
                    self._count_success()
                raise
            self._count_success()

    @asynccontextmanager
    async def _slot(self, slots: asyncio.Semaphore) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(_MAX_SLOT_WAIT_S if self._fails_fast and slots.locked() else None):
                await slots.acquire()
        except TimeoutError:
            raise StorageUnavailable(NO_RESPONSE, "the object store is too slow for all requests") from None
        try:
            yield
        finally:
            slots.release()

    def _count_failure(self, started_at: float) -> None:
        now = time.monotonic()
        self._failures += 1
        if self._fails_fast and (now - started_at > _QUICK_S or self._failures >= _MAX_QUICK_FAILURES):
            self._is_failing, self._try_again_at = True, now + _TRY_INTERVAL_S

    def _count_success(self) -> None:
        self._failures, self._is_failing, self._try_again_at = 0, False, 0.0


class _Reader(RawIOBase):
    """Reads the body of a response."""

    def __init__(self, name: str, result: obstore.GetResult) -> None:
        self._name = name
        self._chunks = result.stream(_CHUNK_BYTES)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        with _errors(self._name):
            while not self._rest:
                chunk = next(self._chunks, None)
                if chunk is None:
                    return 0
                self._rest = memoryview(chunk)
        target = memoryview(buffer).cast("B")
        count = min(len(target), len(self._rest))
        target[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def _encode(attributes: Attributes) -> StoreAttributes:
    encoded: StoreAttributes = {"Content-Type": attributes.media_type}
    if attributes.note:
        encoded[_NOTE] = attributes.note
    return encoded


def _decode(attributes: StoreAttributes) -> Attributes:
    return Attributes(attributes.get("Content-Type", ""), attributes.get(_NOTE, ""))


def _info(meta: obstore.ObjectMeta) -> ObjectInfo:
    return ObjectInfo(meta["path"], meta["size"], int(meta["last_modified"].timestamp() * 10**9))


@contextmanager
def _errors(name: str, *, writes: bool = False) -> Iterator[None]:
    """Turns errors of obstore into OSErrors."""
    try:
        yield
    except FileNotFoundError as error:
        if writes:  # only the bucket can be missing
            raise StorageUnavailable(NO_BUCKET, "the bucket does not exist") from error
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from None
    except AlreadyExistsError:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name) from None
    except (PermissionDeniedError, UnauthenticatedError) as error:
        reason = "the object store refuses the credentials, or what they ask for"
        raise StorageUnavailable(REFUSED, f"{reason}: {_shorten(error)}") from error
    except BaseError as error:
        raise StorageUnavailable(NO_RESPONSE, f"the object store does not respond: {_shorten(error)}") from error


def _read_draft(path: Path, size: int) -> mmap.mmap | bytes:
    """Returns the content in memory that goes back to the system afterwards. Of what malloc gives to several threads,
    much would stay with the process. Blocks; raises OSError.
    """
    _require_draft(path)
    if not size:
        return b""
    content = mmap.mmap(-1, size)
    with path.open("rb") as file:
        if file.readinto(content) != size:
            raise OSError(errno.ESTALE, "the local file is shorter than it was", str(path))
    return content


def _require_draft(path: Path) -> None:
    """Raises OSError if a local file is missing, which is no missing bucket. Blocks."""
    if not path.exists():
        raise OSError(errno.ESTALE, "the local file was removed", str(path))


def _create(path: Path) -> BinaryIO:
    """Opens a new local file. A missing folder is no missing object. Blocks; raises OSError."""
    try:
        return path.open("xb")
    except FileNotFoundError as error:
        raise OSError(errno.ESTALE, "the folder was removed", str(path.parent)) from error


def _shorten(error: BaseError) -> str:
    return " ".join(str(error).split())[:_MAX_ERROR_CHARACTERS]
