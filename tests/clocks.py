"""Processes whose clock is not this host's, by libfaketime. Their monotonic clock and the times of files stay true."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import do_without

_LIBRARIES = ("/usr/lib", "/usr/local/lib")


def wrong_clock(folder: Path, offset: str) -> WrongClock:
    """Skips where libfaketime is missing; CI installs it and requires it."""
    library = next((path for root in _LIBRARIES for path in Path(root).glob("**/libfaketimeMT.so.1")), None)
    if library is None:
        do_without("libfaketime is not installed")
    return WrongClock(library, folder / "clock", offset)


class WrongClock:
    """`offset` is from the true time, as in "+2h" or "-90" (seconds)."""

    def __init__(self, library: Path, file: Path, offset: str) -> None:
        file.parent.mkdir(exist_ok=True)
        self._file = file
        self.set(offset)
        self.environment = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_RESET": "1",
            "NO_FAKE_STAT": "1",
        }

    def set(self, offset: str) -> None:
        """Also of processes that run."""
        moved = self._file.with_suffix(".new")
        moved.write_text(offset)
        moved.replace(self._file)
