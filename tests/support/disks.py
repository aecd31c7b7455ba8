"""Disks of the tests: small ones, which only root can mount, and those that are not mounted."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from service.config.settings import Settings
from service.storage.identity import record_id
from service.storage.interface import OriginalStorage
from service.storage.local.disk import create_id
from service.storage.local.originals import LocalOriginals
from tests.conftest import do_without

# What a start may find if the disk of a storage is not mounted.
WAYS_TO_BE_AWAY = ["nothing", "empty folder", "folders", "other storage"]


def on_disk(storage: OriginalStorage) -> LocalOriginals:
    """Returns a storage as that of a disk, for tests that look at its files."""
    assert isinstance(storage, LocalOriginals)
    return storage


@contextmanager
def away(storage: Path, instead: str) -> Iterator[None]:
    """Within the block the storage is not in its folder; one of WAYS_TO_BE_AWAY is."""
    disk = storage.with_name(f"{storage.name}-disk")
    storage.rename(disk)
    if instead != "nothing":
        storage.mkdir()
    if instead in {"folders", "other storage"}:
        LocalOriginals(storage).prepare()
    if instead == "other storage":
        create_id(storage)
    try:
        yield
    finally:
        shutil.rmtree(storage, ignore_errors=True)
        disk.rename(storage)


async def prepare_known(settings: Settings, connection: Any) -> LocalOriginals:
    """The storage as the first start of an API process leaves it."""
    storage = LocalOriginals(settings.storage_folder)
    storage.prepare()
    await record_id(connection, create_id(settings.storage_folder), instead_of=None)
    return storage


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[None]:
    """A file system in memory; `size` is of mount(8), e.g. 40m. Skips the test if this is not root."""
    if os.geteuid() != 0:
        do_without("only root can mount a small disk")
    folder.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "daguerre", folder], check=False).returncode:
        do_without("no disk can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def remount(folder: Path, options: str) -> None:
    """E.g. `ro`, which fails while a file is open to be written."""
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def fill(folder: Path) -> Path:
    """Returns a file that takes all that is free, or may take what others free."""
    path = folder / "filling"
    with suppress(OSError), path.open("ab", buffering=0) as file:
        while file.write(bytes(1 << 20)):
            pass
    with suppress(OSError), path.open("ab", buffering=0) as file:
        while file.write(bytes(1 << 12)):
            pass
    return path
