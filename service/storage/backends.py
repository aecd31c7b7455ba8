"""Opens the storages of the settings. Only this module chooses a backend.

The object store is imported when it is used, because that takes a while.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from service.config.settings import Settings
from service.database import Database
from service.storage.interface import OriginalBackend, OriginalInventory, RenditionStorage, StorageSetup
from service.storage.local.file_systems import is_local_disk
from service.storage.local.inventory import LocalInventory
from service.storage.local.originals import LocalOriginals
from service.storage.local.renditions import LocalRenditions


def open_setup(settings: Settings) -> StorageSetup:
    """Returns the operations on the storage of originals at start-up. Raises SettingsError."""
    if (url := settings.object_store) is not None:
        from service.storage.object_store.backends import open_object_setup  # noqa: PLC0415

        return open_object_setup(url, settings)
    return LocalOriginals(settings.storage_folder)


def open_originals(
    settings: Settings, database: Database, load_id: Callable[[], Awaitable[str | None]]
) -> OriginalBackend:
    """`load_id` loads the id of the database's storage; no other storage is used. Raises SettingsError."""
    if (url := settings.object_store) is not None:
        from service.storage.object_store.backends import open_object_originals  # noqa: PLC0415

        return open_object_originals(url, settings, database, load_id)
    folder = settings.storage_folder
    return LocalOriginals(folder, load_id, is_local=is_local_disk(folder, settings.storage_disk))


def open_inventory(
    settings: Settings, database: Database, load_id: Callable[[], Awaitable[str | None]] | None = None
) -> OriginalInventory:
    """Like `open_originals`, for commands. Without `load_id`, a storage with any id is used."""
    if (url := settings.object_store) is not None:
        from service.storage.object_store.backends import open_object_inventory  # noqa: PLC0415

        return open_object_inventory(url, settings, database, load_id)
    return LocalInventory(settings.storage_folder, load_id)


def open_renditions(settings: Settings) -> RenditionStorage:
    """Raises SettingsError."""
    if (url := settings.object_store) is not None:
        from service.storage.object_store.backends import open_object_renditions  # noqa: PLC0415

        return open_object_renditions(url, settings)
    folder = settings.renditions_folder
    return LocalRenditions(folder, is_local=is_local_disk(folder, settings.storage_disk))
