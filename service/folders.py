"""Folders that Daguerre creates."""

from __future__ import annotations

from pathlib import Path


def make_folder(path: Path) -> None:
    """Creates a folder and its missing parents for this user alone (mode 700). An existing folder stays unchanged.

    Blocks. Raises OSError.
    """
    if path.is_dir():
        return
    if not path.parent.exists():
        make_folder(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
