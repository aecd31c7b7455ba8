"""Ages of files stay right when clocks jump."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from service.storage.clock import FolderClock, read_clock
from tests.support.disks import mounted

HOUR_S = 3600
_MONOTONIC = time.monotonic


@pytest.fixture
def jump(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The sum is how far the file system's clock jumped forward: the monotonic clock is behind by it."""
    seconds: list[float] = []
    monkeypatch.setattr(time, "monotonic", lambda: _MONOTONIC() - sum(seconds))
    return seconds


def test_clock_is_that_of_new_files(tmp_path: Path) -> None:
    before = time.time() - 1
    assert before < read_clock(tmp_path) < time.time() + 1
    assert list(tmp_path.iterdir()) == []


def test_full_disk_has_a_clock(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with mounted(disk, "1m"):
        subprocess.run(["mount", "-o", "remount,nr_inodes=1", disk], check=True)
        with pytest.raises(OSError, match="No space"):
            (disk / "file").touch()
        os.utime(disk, (0, 0))
        assert abs(read_clock(disk) - time.time()) < 10


def test_missing_folder_has_no_clock(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FolderClock(tmp_path / "missing").read(HOUR_S)


@pytest.mark.parametrize("forward_s", [90, 2 * HOUR_S, 86400])
def test_jump_makes_no_file_older(tmp_path: Path, jump: list[float], forward_s: float) -> None:
    """As after a host has slept, or a clock without a battery was corrected."""
    clock = FolderClock(tmp_path)
    before = clock.read(HOUR_S)
    jump.append(forward_s)
    assert abs(clock.read(HOUR_S) - (before - forward_s)) < 10


def test_jump_is_forgotten_after_the_age(tmp_path: Path, jump: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FolderClock(tmp_path)
    clock.read(HOUR_S)
    jump.append(2 * HOUR_S)
    clock.read(HOUR_S)
    jump.append(-HOUR_S - 60)  # an hour and a minute of the monotonic clock, in which nothing was read
    later = clock.read(HOUR_S)
    assert abs(later - read_clock(tmp_path)) < HOUR_S + 120


def test_clock_set_back_makes_files_younger_only(tmp_path: Path, jump: list[float]) -> None:
    clock = FolderClock(tmp_path)
    before = clock.read(HOUR_S)
    jump.append(-2 * HOUR_S)
    assert clock.read(HOUR_S) <= before + 2 * HOUR_S + 10
