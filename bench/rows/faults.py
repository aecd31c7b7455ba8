"""Runs the fault tests of tests/chaos and prints what clients observed during each fault."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.wrk import BenchError

_ROOT = Path(__file__).parents[2]


def run(folder: Path, *, rounds: int, seconds: float, sizes: Sequence[str]) -> None:  # noqa: ARG001 - each fault once
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--chaos", f"--basetemp={folder / 'tests'}"],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise BenchError(f"an invariant did not hold:\n{result.stdout[-5000:]}")
    print("\nFaults under load\n")
    print("\n".join(line for line in result.stdout.splitlines() if line.startswith("|")))
