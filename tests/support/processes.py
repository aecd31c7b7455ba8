"""The process table of this machine."""

from __future__ import annotations

import contextlib
from pathlib import Path


def is_alive(pid: int) -> bool:
    """Returns whether a process runs. A zombie does not."""
    return processes().get(pid, (0, "Z", ""))[1] != "Z"


def processes() -> dict[int, tuple[int, str, str]]:
    """Returns parent, state and command line of every process."""
    table = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            args = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            table[int(entry.name)] = (int(parent), state, args)
    return table


def peak_kb(pid: int | None) -> int:
    """Returns the peak memory of a process, or 0 if it has ended or the system does not report it."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
