"""Installs the packages of the comparators once, in the folder that the benchmark uses."""

from __future__ import annotations

import fcntl

import pytest

from bench.comparators.start import UnavailableError, command
from bench.targets import INSTALL_FOLDER


def command_of(comparator: str) -> list[str]:
    """Returns the command that starts a comparator. Installs it first; other test processes wait meanwhile.

    Skips the test if Node is too old or a registry is not reachable, also in CI, because Daguerre needs neither.
    """
    INSTALL_FOLDER.mkdir(parents=True, exist_ok=True)
    with (INSTALL_FOLDER / f"{comparator}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return command(comparator, INSTALL_FOLDER)
        except UnavailableError as error:
            pytest.skip(str(error))
