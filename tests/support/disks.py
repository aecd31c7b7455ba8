"""Disks for tests: small disks, which only root can mount, and unmounted disks."""

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
from tests.conftest import skip_or_fail

# What a process may find in the folder of a storage whose disk is not mounted.
UNMOUNTED_STATES = ["nothing", "empty folder", "folders", "other storage"]


def on_disk(storage: OriginalStorage) -> LocalOriginals:
    """Returns the storage with its type, for tests that read its files."""
    assert isinstance(storage, LocalOriginals)
    return storage


@contextmanager
def unmounted(storage: Path, instead: str) -> Iterator[None]:
    """Replaces the folder of the storage within the block. `instead` is one of UNMOUNTED_STATES."""
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


async def prepare_identified(settings: Settings, connection: Any) -> LocalOriginals:
    """Prepares the storage and records its id, like the first start of an API process."""
    storage = LocalOriginals(settings.storage_folder)
    storage.prepare()
    await record_id(connection, create_id(settings.storage_folder), instead_of=None)
    return storage


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[None]:
    """Mounts a file system in memory within the block. `size` is that of mount(8), e.g. 40m. Skips without root."""
    if os.geteuid() != 0:
        skip_or_fail("only root can mount a small disk")
    folder.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "daguerre", folder], check=False).returncode:
        skip_or_fail("no disk can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def remount(folder: Path, options: str) -> None:
    """Remounts with options, e.g. `ro`, which fails while a file is open for writing."""
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def fill(folder: Path) -> Path:
    """Fills the disk and returns the file that does it. It may exist already."""
    path = folder / "filling"
    with suppress(OSError), path.open("ab", buffering=0) as file:
        while file.write(bytes(1 << 20)):
            pass
    with suppress(OSError), path.open("ab", buffering=0) as file:
        while file.write(bytes(1 << 12)):
            pass
    return path
