"""Gives processes a wrong clock with libfaketime. Their monotonic clock and the times of files stay correct."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import skip_or_fail

_LIBRARIES = ("/usr/lib", "/usr/local/lib")


def wrong_clock(folder: Path, offset: str, *, moves: bool = False) -> WrongClock:
    """Returns a clock with an offset from the true time, e.g. "+2h" or "-90" (seconds).

    If it `moves`, its offset is in a file in `folder`, which processes read each time they read the clock.

    Skips the test if libfaketime is missing. CI installs and requires it.
    """
    library = next((path for root in _LIBRARIES for path in Path(root).glob("**/libfaketimeMT.so.1")), None)
    if library is None:
        skip_or_fail("libfaketime is not installed")
    clock = WrongClock(library, folder / "clock" if moves else None)
    clock.set(offset)
    return clock


class WrongClock:
    """A clock with an offset. `environment` are the variables for the processes that use it."""

    def __init__(self, library: Path, file: Path | None) -> None:
        self._file = file
        self.environment = {
            "LD_PRELOAD": str(library),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_RESET": "1",
            "NO_FAKE_STAT": "1",
        }
        if file is not None:
            self.environment |= {"FAKETIME_TIMESTAMP_FILE": str(file), "FAKETIME_NO_CACHE": "1"}

    def set(self, offset: str) -> None:
        """Sets the offset, also for running processes if the clock moves."""
        if self._file is None:
            self.environment["FAKETIME"] = offset
            return
        new = self._file.with_suffix(".new")
        new.write_text(offset)
        new.replace(self._file)
