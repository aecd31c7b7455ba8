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
    return LocalOriginals(folder, load_id, is_local=_is_local(folder, disk))


def open_renditions(folder: Path, *, disk: Disk = "auto") -> RenditionStorage:
    return LocalRenditions(folder, is_local=_is_local(folder, disk))


def _is_local(folder: Path, disk: Disk) -> bool:
    return is_local(folder) if disk == "auto" else disk == "local"
