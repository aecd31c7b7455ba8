"""Disks of the tests: small ones, and those that are not mounted."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.storage.disk import DiskStorage
from service.storage.identity import make_id
from tests.conftest import do_without

# What may be in the place of a storage whose disk is not mounted.
WAYS_TO_BE_AWAY = ["nothing", "empty folder", "folders", "other storage"]


@contextmanager
def away(storage: Path, instead: str) -> Iterator[None]:
    """Within the block the storage is not in its folder; one of WAYS_TO_BE_AWAY is."""
    disk = storage.with_name(f"{storage.name}-disk")
    storage.rename(disk)
    if instead != "nothing":
        storage.mkdir()
    if instead in {"folders", "other storage"}:
        DiskStorage(storage).prepare()
    if instead == "other storage":
        make_id(storage)
    try:
        yield
    finally:
        shutil.rmtree(storage, ignore_errors=True)
        disk.rename(storage)


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[None]:
    """A file system in memory; only root can mount one."""
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
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
