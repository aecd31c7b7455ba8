"""Opens an object store with its local copies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from service.config.settings import Settings
from service.config.values import StoreUrl
from service.database import Database
from service.storage.local.file_systems import is_local_disk
from service.storage.object_store.cache import FileCache
from service.storage.object_store.client import ObjectStore
from service.storage.object_store.inventory import ObjectInventory
from service.storage.object_store.journal import Journal
from service.storage.object_store.originals import ObjectOriginals
from service.storage.object_store.renditions import ObjectRenditions
from service.storage.object_store.setup import ObjectSetup


def open_object_setup(url: StoreUrl, settings: Settings) -> ObjectSetup:
    return ObjectSetup(ObjectStore(url), _open_cache(settings))


def open_object_originals(
    url: StoreUrl, settings: Settings, database: Database, load_id: Callable[[], Awaitable[str | None]]
) -> ObjectOriginals:
    return ObjectOriginals(ObjectStore(url), _open_cache(settings), Journal(database), load_id)


def open_object_inventory(
    url: StoreUrl, settings: Settings, database: Database, load_id: Callable[[], Awaitable[str | None]] | None
) -> ObjectInventory:
    store = ObjectStore(url, fails_fast=False)
    return ObjectInventory(store, _open_cache(settings), Journal(database), load_id)


def open_object_renditions(url: StoreUrl, settings: Settings) -> ObjectRenditions:
    return ObjectRenditions(ObjectStore(url), _open_cache(settings))


def _open_cache(settings: Settings) -> FileCache:
    folder = settings.cache_folder
    return FileCache(folder, settings.cache_size, is_local=is_local_disk(folder, settings.storage_disk))
