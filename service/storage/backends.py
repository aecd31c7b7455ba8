"""Opens the storages of the settings. Only this module chooses a backend."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from service.config.settings import Disk
from service.storage.interface import OriginalBackend, RenditionStorage
from service.storage.local.file_systems import is_local
from service.storage.local.originals import LocalOriginals
from service.storage.local.renditions import LocalRenditions


def open_originals(
    folder: Path, load_id: Callable[[], Awaitable[str | None]] | None = None, *, disk: Disk = "auto"
) -> OriginalBackend:
    """`load_id` loads the id of the database's storage; with it, no other storage is used."""
    return LocalOriginals(folder, load_id, is_local=is_local_disk(folder, disk))


def open_renditions(folder: Path, *, disk: Disk = "auto") -> RenditionStorage:
    return LocalRenditions(folder, is_local=is_local_disk(folder, disk))


def is_local_disk(folder: Path, disk: Disk) -> bool:
    """Returns whether short calls to the disk of the folder may run on the event loop."""
    return is_local(folder) if disk == "auto" else disk == "local"
