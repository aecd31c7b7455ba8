"""The clock of the file system, which may be that of a server. File times come from it."""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections import deque
from pathlib import Path

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def read_clock(folder: Path) -> float:
    """Returns the Unix time that a file in `folder` gets now. Blocks; raises OSError."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError as error:
        if error.errno not in _FULL:
            raise
    os.utime(folder)  # a full disk accepts no new file, but a new time
    return folder.stat().st_mtime


class FolderClock:
    """Reads the clock of a folder, and corrects forward jumps, after which new files would look old.

    A clock jumps when its host wakes up or corrects it. So the clock is compared with the monotonic clock of this
    process. The smallest lead over it within the last `span_s` counts. A jump before this process started is not
    detected.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._leads: deque[tuple[float, float]] = deque()  # (monotonic time, lead) in seconds; the smallest lead first

    def read(self, span_s: float) -> float:
        """Returns the Unix time to compare files of at least the age `span_s` with. Blocks; raises OSError."""
        now = time.monotonic()
        lead = read_clock(self._folder) - now
        while self._leads and self._leads[-1][1] >= lead:
            self._leads.pop()
        self._leads.append((now, lead))
        while self._leads[0][0] < now - span_s:
            self._leads.popleft()
        return now + self._leads[0][1]
