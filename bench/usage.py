"""CPU time and memory of a process and its descendants, by part (api, worker, postgres…)."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")

# Words in a command line, and the part that they identify.
_PARTS = (
    ("worker.sandbox.decoder_main", "libvips"),
    ("cli serve", "api"),
    ("cli worker", "worker"),
    ("bench.stub_worker", "worker"),
    ("postgres", "postgres"),
    ("valkey", "valkey"),
    ("bin/weed", "object store"),
    ("server.js", "service"),
    ("bench.comparators", "service"),
    ("comparators/thumbor", "service"),
    ("multiprocessing", "service"),
)


@dataclass(frozen=True, slots=True)
class Usage:
    """The usage of one part: the CPU seconds of all its processes; peak and current memory of its largest process."""

    cpu_s: float = 0
    peak_mb: float = 0
    current_mb: float = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.cpu_s + other.cpu_s, max(self.peak_mb, other.peak_mb), max(self.current_mb, other.current_mb))


def by_part(roots: Collection[int]) -> dict[str, Usage]:
    """Returns the usage of these processes and their descendants by part. Ended processes are not included."""
    total: defaultdict[str, Usage] = defaultdict(Usage)
    for part, usage in _read(roots).values():
        total[part] += usage
    return dict(total)


def pids_of(part: str, roots: Collection[int]) -> list[int]:
    return [pid for pid, (name, _) in _read(roots).items() if name == part]


def _read(roots: Collection[int]) -> dict[int, tuple[str, Usage]]:
    parents: dict[int, int] = {}
    usages: dict[int, tuple[str, Usage]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            status = (entry / "status").read_text()
        except OSError:
            continue
        parents[int(entry.name)] = int(fields[1])
        cpu_s = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
        usages[int(entry.name)] = (
            _part_of(command),
            Usage(cpu_s, _megabytes("VmHWM", status), _megabytes("VmRSS", status)),
        )
    return {pid: usage for pid, usage in usages.items() if _is_descendant(pid, roots, parents)}


def _megabytes(name: str, status: str) -> float:
    match = re.search(rf"{name}:\s+(\d+) kB", status)
    return int(match[1]) / 1024 if match else 0


def _is_descendant(pid: int, roots: Collection[int], parents: dict[int, int]) -> bool:
    while pid and pid not in roots:
        pid = parents.get(pid, 0)
    return pid != 0


def _part_of(command: str) -> str:
    return next((part for words, part in _PARTS if words in command), "other")
