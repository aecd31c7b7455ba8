"""The client of an object store: obstore, with time limits, bounded concurrency, and errors as if it were a disk."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import time
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError

from service.config.values import StoreUrl
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
_CHUNK_BYTES = 1 << 20
# While the store does not respond, it is tried this often.
_TRY_INTERVAL_S = 1.0
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

    Raises FileNotFoundError for an object that does not exist, and OSError. Methods without `async` block.
    """

    def __init__(self, url: StoreUrl, environment: Mapping[str, str] = os.environ) -> None:
        """Does not connect. Raises SettingsError if the credentials of the environment cannot be used."""
        self.url = url
        self._store = open_store(url, environment)
        self._requests = asyncio.Semaphore(_MAX_REQUESTS)
        self._large_uploads = asyncio.Semaphore(_MAX_LARGE_UPLOADS)
        self._downloads = asyncio.Semaphore(_MAX_DOWNLOADS)
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
                await self._put(name, await asyncio.to_thread(path.read_bytes), attributes, replace=replace)
            return
        # A store has no condition for an upload in parts. The caller reserves its names, so that this check is enough.
        if not replace and await self.find(name) is not None:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        async with self._request(name, self._large_uploads, writes=True):
            await obstore.put_async(
                self._store,
                name,
                path,
                attributes=_encode(attributes),
                chunk_size=_PART_BYTES,
                max_concurrency=_PARTS_IN_FLIGHT,
            )

    async def _put(self, name: str, data: bytes, attributes: Attributes, *, replace: bool) -> None:
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
            file = await asyncio.to_thread(path.open, "xb")
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
        """Returns a URL at which anyone can read the object for this long."""
        async with self._request(name, self._requests):
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
        async with slots:
            now = time.monotonic()
            if now < self._try_again_at:
                raise OSError(NO_RESPONSE, "the object store did not respond to earlier requests")
            if self._is_failing:
                self._try_again_at = now + _TRY_INTERVAL_S
            try:
                with _errors(name, writes=writes):
                    yield
            except OSError as error:
                if error.errno == NO_RESPONSE:
                    self._is_failing, self._try_again_at = True, time.monotonic() + _TRY_INTERVAL_S
                else:  # it has responded
                    self._is_failing, self._try_again_at = False, 0.0
                raise
            self._is_failing, self._try_again_at = False, 0.0


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
            raise OSError(NO_BUCKET, "the bucket does not exist") from error
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from None
    except AlreadyExistsError:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name) from None
    except (PermissionDeniedError, UnauthenticatedError) as error:
        reason = "the object store refuses the credentials, or what they ask for"
        raise OSError(REFUSED, f"{reason}: {_shorten(error)}") from error
    except BaseError as error:
        raise OSError(NO_RESPONSE, f"the object store does not respond: {_shorten(error)}") from error


def _shorten(error: BaseError) -> str:
    return " ".join(str(error).split())[:_MAX_ERROR_CHARACTERS]
