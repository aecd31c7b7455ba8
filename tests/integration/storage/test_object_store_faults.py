"""What a store that has faults, or is no complete one, makes of single objects and of all others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.config.settings import SettingsError
from service.database import Database
from service.ids import ImageId
from service.storage.interface import StorageUnavailable, UnreadableFile
from service.storage.object_store import client
from service.storage.object_store.cache import FileCache
from service.storage.object_store.client import Attributes, ObjectStore
from service.storage.object_store.inventory import ObjectInventory
from service.storage.object_store.journal import Journal
from service.storage.object_store.originals import object_name
from service.storage.object_store.setup import ID_OBJECT, ObjectSetup
from tests.support.forwarder import Forwarder
from tests.support.plain_store import BUCKET, PlainStore

ID, OTHER = ImageId("AAAAAAA"), ImageId("BBBBBBB")


@pytest.fixture
async def server() -> AsyncIterator[PlainStore]:
    async with PlainStore.open() as server:
        yield server


@pytest.fixture
def store(server: PlainStore) -> ObjectStore:
    return ObjectStore(BUCKET, server.environment())


@pytest.fixture
def cache(tmp_path: Path) -> FileCache:
    cache = FileCache(tmp_path / "cache", 1 << 30, is_local=True)
    cache.prepare()
    return cache


@pytest.fixture
async def inventory(server: PlainStore, cache: FileCache, database_url: str) -> AsyncIterator[ObjectInventory]:
    server.objects |= {ID_OBJECT: b"own\n", object_name(ID): b"content", object_name(OTHER): b"other"}

    async def load_id() -> str:
        return "own"

    async with Database.open(database_url, connections=1) as database:
        patient = ObjectStore(BUCKET, server.environment(), fails_fast=False)
        yield ObjectInventory(patient, cache, Journal(database), load_id)


class TestOneUnreadableObject:
    async def test_stops_no_other_request(self, server: PlainStore, store: ObjectStore) -> None:
        await store.put("fine", b"content", Attributes())
        server.broken.add("broken")
        for _ in range(2):
            with pytest.raises(StorageUnavailable):
                await store.read("broken")
            assert await store.read("fine") == b"content"

    async def test_several_failures_in_a_row_are_an_outage(self, server: PlainStore, store: ObjectStore) -> None:
        await store.put("fine", b"content", Attributes())
        server.broken.add("broken")
        for _ in range(3):
            with pytest.raises(StorageUnavailable):
                await store.read("broken")
        with pytest.raises(StorageUnavailable, match="earlier requests"):
            await store.read("fine")

    async def test_is_named_by_a_command(self, server: PlainStore, inventory: ObjectInventory, tmp_path: Path) -> None:
        """So that a backup has all other files, and `verify` goes on."""
        server.broken.add(object_name(ID))
        for _ in range(2):
            with pytest.raises(UnreadableFile):
                await inventory.export(ID, tmp_path / "copy")
            with pytest.raises(UnreadableFile):
                await inventory.examine(ID, read=True)
        await inventory.export(OTHER, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == b"other"

    async def test_store_that_is_away_is_no_unreadable_object(
        self, server: PlainStore, inventory: ObjectInventory, tmp_path: Path
    ) -> None:
        server.broken |= {object_name(ID), ID_OBJECT}
        with pytest.raises(StorageUnavailable):
            await inventory.export(ID, tmp_path / "copy")
        with pytest.raises(StorageUnavailable):
            await inventory.examine(ID, read=False)


class TestConditions:
    def prepare(self, server: PlainStore, cache: FileCache) -> None:
        ObjectSetup(ObjectStore(BUCKET, server.environment()), cache).prepare()

    async def test_store_that_ignores_them_is_refused(self, server: PlainStore, cache: FileCache) -> None:
        server.ignores_conditions = True
        for _ in range(2):
            with pytest.raises(SettingsError, match="replaces objects that it should only create"):
                await asyncio.to_thread(self.prepare, server, cache)

    async def test_refused_store_keeps_its_id(self, server: PlainStore, cache: FileCache) -> None:
        await asyncio.to_thread(self.prepare, server, cache)
        before = server.objects[ID_OBJECT]
        server.ignores_conditions = True
        with pytest.raises(SettingsError):
            await asyncio.to_thread(self.prepare, server, cache)
        assert server.objects[ID_OBJECT] == before


async def test_removed_draft_is_no_missing_bucket(store: ObjectStore, tmp_path: Path) -> None:
    for size in (1, 20 << 20):
        with pytest.raises(OSError, match="the local file was removed"):
            await store.put_file("name", tmp_path / "none", size, Attributes(), replace=True)


async def test_removed_folder_is_no_missing_object(store: ObjectStore, tmp_path: Path) -> None:
    await store.put("name", b"content", Attributes())
    with pytest.raises(OSError, match="the folder was removed") as caught:
        await store.download("name", tmp_path / "none" / "copy")
    assert not isinstance(caught.value, FileNotFoundError)


async def test_wait_for_a_slow_store_is_bounded(server: PlainStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_MAX_SLOT_WAIT_S", 0.1)
    server.objects["name"] = b"content"
    async with Forwarder.open(int(server.url.rpartition(":")[2])) as forwarder:
        store = ObjectStore(
            BUCKET, {**server.environment(), "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{forwarder.port}"}
        )
        forwarder.mode = "hang"
        waiting = [asyncio.create_task(store.read("name")) for _ in range(64)]
        await asyncio.sleep(0)
        with pytest.raises(StorageUnavailable, match="too slow"):
            await store.read("name")
        forwarder.mode = "forward"
        assert await asyncio.gather(*waiting) == [b"content"] * 64
        assert await store.read("name") == b"content"
