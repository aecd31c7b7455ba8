"""What every backend for originals promises. A new backend joins BACKENDS."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from service.database import Database
from service.errors import ServiceError
from service.ids import ImageId
from service.storage.files import SMALL_BYTES
from service.storage.interface import IdTaken, OriginalBackend, StorageUnavailable, UploadFile
from service.storage.local.originals import LocalOriginals
from service.storage.object_store.cache import FileCache
from service.storage.object_store.client import ObjectStore
from service.storage.object_store.journal import Journal
from service.storage.object_store.originals import ObjectOriginals
from tests.conftest import NewObjectStore
from tests.support.waiting import until

ID, OTHER = ImageId("AAAAAAA"), ImageId("BBBBBBB")
IDS = [ImageId(f"Image{number:02}") for number in range(40)]


@dataclass
class Site:
    """A backend beside a database, which has the id of its storage or none. `reopen` is a start of another process."""

    open: Callable[[Site], OriginalBackend]
    folder: Path
    database: Database
    object_store: Callable[[], ObjectStore]
    database_id: str | None = None

    async def load_id(self) -> str | None:
        return self.database_id

    def reopen(self) -> OriginalBackend:
        return self.open(self)


def open_local(site: Site, *, is_local: bool) -> OriginalBackend:
    return LocalOriginals(site.folder / "storage", site.load_id, is_local=is_local)


def open_object_store(site: Site) -> OriginalBackend:
    cache = FileCache(site.folder / "cache", 1 << 30, is_local=True)
    return ObjectOriginals(site.object_store(), cache, Journal(site.database), site.load_id)


BACKENDS: dict[str, Callable[[Site], OriginalBackend]] = {
    "local disk": partial(open_local, is_local=True),
    "remote disk": partial(open_local, is_local=False),
    "object store": open_object_store,
}


@pytest.fixture(params=BACKENDS)
async def site(
    request: pytest.FixtureRequest, tmp_path: Path, database_url: str, new_object_store: NewObjectStore
) -> AsyncIterator[Site]:
    async with Database.open(database_url, connections=4) as database:
        yield Site(BACKENDS[request.param], tmp_path, database, functools.cache(new_object_store))


@pytest.fixture
def storage(site: Site) -> OriginalBackend:
    storage = site.reopen()
    storage.prepare()
    site.database_id = storage.create_own_id()
    return storage


async def receive(storage: OriginalBackend, image_id: ImageId, *chunks: bytes) -> UploadFile:
    async with storage.receive(image_id) as file:
        for chunk in chunks[:-1]:
            await file.write([chunk])
        await file.finish(chunks[-1:])
    return file


async def upload(storage: OriginalBackend, image_id: ImageId, *chunks: bytes) -> UploadFile:
    """A durable file whose row could be inserted now."""
    file = await receive(storage, image_id, *chunks)
    assert await storage.sync_batch([file]) == [None]
    return file


async def store(storage: OriginalBackend, image_id: ImageId, *chunks: bytes) -> None:
    await upload(storage, image_id, *chunks)
    assert await storage.publish([image_id]) == frozenset()


def read(storage: OriginalBackend, image_id: ImageId) -> bytes:
    with storage.open_file(image_id) as file:
        return file.read()


def sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


async def list_stale(storage: OriginalBackend, count: int) -> list[ImageId]:
    """All uploads that are not published, once the clock of the storage has gone on since they were written."""
    listed: list[ImageId] = []

    async def are_listed() -> bool:
        listed[:] = await storage.list_stale_uploads(0, 100)
        return len(listed) >= count

    await until(are_listed)
    return sorted(listed)


class TestUpload:
    @pytest.mark.parametrize("chunks", [[b"small"], [b"in", b"two"], [b"a" * SMALL_BYTES, b"b" * SMALL_BYTES, b"end"]])
    async def test_stream_is_stored_completely(self, storage: OriginalBackend, chunks: list[bytes]) -> None:
        await store(storage, ID, *chunks)
        assert read(storage, ID) == b"".join(chunks)

    async def test_unpublished_file_can_be_read(self, storage: OriginalBackend) -> None:
        """Its row is committed, and the process may have died since."""
        await upload(storage, ID, b"content")
        assert read(storage, ID) == b"content"
        file = await storage.find(ID)
        assert file is not None
        assert file.data == b"content"
        assert await storage.list_present([ID]) == [ID]

    @pytest.mark.parametrize("chunks", [[], [b"written"]])
    async def test_failed_upload_leaves_nothing(self, storage: OriginalBackend, chunks: list[bytes]) -> None:
        async def fail() -> None:
            async with storage.receive(ID) as file:
                await file.write(chunks)
                raise ConnectionResetError

        with pytest.raises(ConnectionResetError):
            await fail()
        assert await storage.find(ID) is None
        await upload(storage, OTHER, b"other")
        assert await list_stale(storage, 1) == [OTHER]

    async def test_cancelled_upload_leaves_nothing(self, storage: OriginalBackend) -> None:
        is_written = asyncio.Event()

        async def hang() -> None:
            async with storage.receive(ID) as file:
                await file.write([b"written"])
                is_written.set()
                await asyncio.Event().wait()

        hanging = asyncio.create_task(hang())
        await is_written.wait()
        hanging.cancel()
        await asyncio.wait([hanging])
        assert await storage.find(ID) is None

    async def test_discarded_upload_leaves_nothing(self, storage: OriginalBackend) -> None:
        await storage.discard(await upload(storage, ID, b"content"))
        assert await storage.find(ID) is None
        assert await storage.find_missing([ID]) == {ID}

    async def test_bad_file_fails_alone_in_a_batch(self, storage: OriginalBackend) -> None:
        first = await upload(storage, ID, b"first")
        files = [await receive(storage, ID, b"second"), await receive(storage, OTHER, b"other")]
        error, none = await storage.sync_batch(files)
        assert none is None
        assert isinstance(error, IdTaken) or (isinstance(error, ServiceError) and error.code == "storage-unavailable")
        await storage.discard(files[0])
        assert (read(storage, ID), read(storage, OTHER)) == (b"first", b"other")
        await storage.discard(first)

    async def test_renamed_upload_is_another_image(self, storage: OriginalBackend) -> None:
        file = await upload(storage, ID, b"content")
        assert await storage.rename_upload(file, OTHER)
        assert await storage.sync_batch([file]) == [None]
        assert await storage.publish([OTHER]) == frozenset()
        assert read(storage, OTHER) == b"content"
        assert await storage.find(ID) is None

    async def test_rename_overwrites_no_upload(self, storage: OriginalBackend) -> None:
        await upload(storage, OTHER, b"other")
        file = await upload(storage, ID, b"content")
        if await storage.rename_upload(file, OTHER):  # then the next step refuses the id
            [error] = await storage.sync_batch([file])
            assert isinstance(error, IdTaken)
        assert read(storage, OTHER) == b"other"
        assert await storage.rename_upload(file, IDS[0])
        assert await storage.sync_batch([file]) == [None]
        assert read(storage, IDS[0]) == b"content"

    async def test_concurrent_uploads_are_all_stored(self, site: Site, storage: OriginalBackend) -> None:
        other = site.reopen()  # publishes the same files, as the sweep of a worker may

        async def store_part(image_ids: list[ImageId]) -> None:
            files = [await receive(storage, image_id, image_id.encode()) for image_id in image_ids]
            assert await storage.sync_batch(files) == [None] * len(files)
            lost = await asyncio.gather(storage.publish(image_ids), other.publish(image_ids))
            assert not any(lost)

        await asyncio.gather(*(store_part(IDS[at : at + 5]) for at in range(0, len(IDS), 5)))
        assert [read(other, image_id) for image_id in IDS] == [image_id.encode() for image_id in IDS]
        assert await storage.list_stale_uploads(0, 100) == []


class TestPublish:
    async def test_published_file_is_no_upload(self, storage: OriginalBackend) -> None:
        await store(storage, ID, b"content")
        await upload(storage, OTHER, b"other")
        assert await list_stale(storage, 1) == [OTHER]

    async def test_publishing_again_changes_nothing(self, storage: OriginalBackend) -> None:
        await store(storage, ID, b"content")
        assert await storage.publish([ID]) == frozenset()
        assert await storage.reconcile({ID: sha256(b"content")}) == {}
        assert read(storage, ID) == b"content"

    async def test_lost_file_stops_no_other(self, storage: OriginalBackend) -> None:
        await upload(storage, OTHER, b"other")
        assert await storage.publish([ID, OTHER]) == {ID}
        assert read(storage, OTHER) == b"other"

    async def test_reconcile_reports_a_lost_file(self, storage: OriginalBackend) -> None:
        await upload(storage, OTHER, b"other")
        failures = await storage.reconcile({ID: sha256(b"x"), OTHER: sha256(b"other")})
        assert set(failures) == {ID}
        assert read(storage, OTHER) == b"other"


class TestStaleUploads:
    async def test_list_is_limited_and_skips(self, storage: OriginalBackend) -> None:
        for image_id in IDS[:4]:
            await upload(storage, image_id, b"content")
        assert await list_stale(storage, 4) == IDS[:4]
        first = await storage.list_stale_uploads(0, 3)
        assert len(first) == 3
        assert await storage.list_stale_uploads(0, 3, skip=set(first)) == [*(set(IDS[:4]) - set(first))]

    async def test_young_uploads_are_not_listed(self, storage: OriginalBackend) -> None:
        await upload(storage, ID, b"content")
        assert await list_stale(storage, 1) == [ID]
        assert await storage.list_stale_uploads(3600, 100) == []

    async def test_stale_upload_is_removed(self, storage: OriginalBackend) -> None:
        await store(storage, OTHER, b"published")
        await upload(storage, ID, b"content")
        assert await storage.remove_stale_uploads([ID, OTHER]) == {}
        assert await storage.find_missing([ID, OTHER]) == {ID}


class TestRead:
    async def test_found_file_has_size_and_content(self, storage: OriginalBackend) -> None:
        await store(storage, ID, b"content")
        file = await storage.find(ID)
        assert file is not None
        assert (file.size, file.data) == (7, b"content")

    async def test_large_file_is_read_in_ranges(self, storage: OriginalBackend) -> None:
        content = os.urandom(SMALL_BYTES + 1)
        await store(storage, ID, content)
        file = await storage.find(ID)
        assert file is not None
        assert (file.size, file.data) == (len(content), None)
        with file.path.open("rb") as opened:
            status = os.fstat(opened.fileno())
            assert (status.st_size, status.st_mtime_ns) == (file.size, file.modified_ns)
            assert os.pread(opened.fileno(), 100, 1000) == content[1000:1100]

    @pytest.mark.parametrize("is_published", [True, False])
    async def test_sandbox_gets_a_local_path(self, storage: OriginalBackend, is_published: bool) -> None:
        await (store if is_published else upload)(storage, ID, b"content")
        path = next(path for path in map(Path, await storage.paths_for_decoding(ID)) if path.exists())
        assert path.read_bytes() == b"content"

    async def test_missing_file_is_not_found(self, storage: OriginalBackend) -> None:
        await store(storage, OTHER, b"other")
        assert await storage.find(ID) is None
        assert await storage.find_missing([ID, OTHER]) == {ID}
        assert await storage.list_present([ID, OTHER]) == [OTHER]
        with pytest.raises(FileNotFoundError):
            storage.open_file(ID)

    async def test_readers_race_with_publishing(self, site: Site, storage: OriginalBackend) -> None:
        """A file whose row is committed is never missing, in whichever process."""
        for image_id in IDS:
            await upload(storage, image_id, image_id.encode())
        reader = site.reopen()
        publishing = [asyncio.create_task(storage.publish([image_id])) for image_id in IDS]
        while not all(task.done() for task in publishing):
            assert await reader.find_missing(IDS) == frozenset()
            assert None not in await asyncio.gather(*map(reader.find, IDS[:8]))
        await asyncio.gather(*publishing)


class TestRemove:
    @pytest.mark.parametrize("is_published", [True, False])
    async def test_removed_file_is_missing(self, storage: OriginalBackend, is_published: bool) -> None:
        await (store if is_published else upload)(storage, ID, b"content")
        await store(storage, OTHER, b"other")
        assert await storage.remove([ID]) == {}
        assert await storage.find(ID) is None
        assert await storage.list_stale_uploads(0, 100) == []
        assert read(storage, OTHER) == b"other"

    async def test_removing_again_is_no_error(self, storage: OriginalBackend) -> None:
        for _ in range(2):
            assert await storage.remove([ID]) == {}

    async def test_id_can_be_used_again(self, storage: OriginalBackend) -> None:
        await store(storage, ID, b"first")
        await storage.remove([ID])
        await store(storage, ID, b"second")
        assert read(storage, ID) == b"second"


class TestIdentity:
    async def test_storage_is_prepared_once(self, site: Site) -> None:
        storage = site.reopen()
        assert storage.is_new()
        storage.prepare()
        assert not storage.is_new()
        site.database_id = storage.create_own_id()
        await store(storage, ID, b"content")
        site.reopen().prepare()
        assert read(storage, ID) == b"content"
        assert storage.find_any_file() is not None

    async def test_own_id_is_created_once(self, site: Site) -> None:
        storage = site.reopen()
        storage.prepare()
        ids = await asyncio.gather(*(asyncio.to_thread(site.reopen().create_own_id) for _ in range(8)))
        assert set(ids) == {storage.read_own_id()}

    async def test_usable_storage_passes_its_checks(self, storage: OriginalBackend) -> None:
        storage.require()
        await storage.require_available()
        await storage.check()
        assert storage.id == storage.read_own_id()

    async def test_another_database_is_refused(self, site: Site, storage: OriginalBackend) -> None:
        await store(storage, ID, b"content")
        site.database_id = "another"
        other = site.reopen()
        for call in (other.require_available(), other.check(), other.remove([ID]), other.list_stale_uploads(0, 1)):
            with pytest.raises(StorageUnavailable):
                await call
        with pytest.raises(ServiceError, match="storage-unavailable"):
            await other.sync_batch([await receive(other, OTHER, b"other")])
        assert read(storage, ID) == b"content"

    @pytest.mark.usefixtures("storage")
    async def test_missing_files_elsewhere_are_not_lost(self, site: Site) -> None:
        site.database_id = "another"
        other = site.reopen()
        with pytest.raises(ServiceError, match="storage-unavailable"):
            await other.find(ID)
        with pytest.raises(StorageUnavailable):
            await other.find_missing([ID])
        assert await other.publish([ID]) == frozenset()

    @pytest.mark.usefixtures("storage")
    async def test_restored_database_needs_no_restart(self, site: Site) -> None:
        own_id, site.database_id = site.database_id, "another"
        other = site.reopen()
        with pytest.raises(StorageUnavailable):
            await other.require_available()
        site.database_id = own_id
        await other.require_available()
