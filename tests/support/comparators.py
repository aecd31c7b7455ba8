"""What the comparators need beyond Daguerre's own packages: installed once, where the benchmark looks for it."""

from __future__ import annotations

import fcntl

import pytest

from bench.comparators.start import UnavailableError, command
from bench.targets import INSTALLED


def command_of(comparator: str) -> list[str]:
    """What starts it; another test process that wants the same waits while it is installed.

    Skips where Node is too old or a registry out of reach, in CI too: nothing of Daguerre needs them.
    """
    INSTALLED.mkdir(parents=True, exist_ok=True)
    with (INSTALLED / f"{comparator}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return command(comparator, INSTALLED)
        except UnavailableError as error:
            pytest.skip(str(error))
