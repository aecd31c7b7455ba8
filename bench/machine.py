"""Describes the machine that the figures come from."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path


def describe() -> str:
    """Returns e.g. "2 cores of AMD EPYC, 24 GB, Linux 6.18, Python 3.11.7"."""
    cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    name = " ".join(cpu[1].replace("(R)", "").split()) if cpu else platform.machine()
    gigabytes = round(int(memory[1]) / (1 << 20)) if memory else 0
    cores = len(os.sched_getaffinity(0))
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    return f"{cores} cores of {name}, {gigabytes} GB, {system}"
