"""Generates load with wrk and checks every response. wrk itself is far from being the bottleneck."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_SCRIPT = Path(__file__).with_name("request.lua")

# In a path: replaced by six hexadecimal digits, different in each request of a run. Enough for 1,024 turns.
FRESH = "{fresh}"
_FRESH_PER_TURN = 1 << 14
_next_fresh = itertools.count(0, _FRESH_PER_TURN)


class BenchError(Exception):
    """The benchmark has no result: a tool is missing, or a response was wrong."""


@dataclass(frozen=True, slots=True)
class Requests:
    """The requests to repeat: one per path, round-robin. A path may contain FRESH.

    A correct response has `status` and contains every text of `expected`. With `jpeg` it is a complete JPEG.
    """

    paths: Sequence[str]
    expected: Sequence[str]
    method: str = "GET"
    body: Path | None = None
    status: int = 200
    jpeg: bool = False


@dataclass(frozen=True, slots=True)
class Load:
    """The result of one wrk run. `cpu_s` is wrk's own CPU time."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    cpu_s: float

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


def require() -> None:
    """Raises BenchError if wrk is not installed."""
    if shutil.which("wrk") is None:
        raise BenchError("wrk is needed for the load: install it (Debian: apt install wrk).")


def send(requests: Requests, port: int, *, connections: int, seconds: float) -> Load:
    """Keeps `connections` busy for `seconds`. Raises BenchError if wrk failed or a response was wrong."""
    with tempfile.NamedTemporaryFile("w", suffix=".paths") as paths:
        paths.write("\n".join(requests.paths))
        paths.flush()
        env = {
            **os.environ,
            "BENCH_METHOD": requests.method,
            "BENCH_TYPE": "image/jpeg",
            "BENCH_BODY": str(requests.body or ""),
            "BENCH_PATHS": paths.name,
            "BENCH_STATUS": str(requests.status),
            "BENCH_EXPECT": "\n".join(requests.expected),
            "BENCH_JPEG": "1" if requests.jpeg else "",
            "BENCH_FRESH": str(next(_next_fresh) if FRESH in requests.paths[0] else 0),
        }
        options = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "60s", "-s", str(_SCRIPT)]
        before = os.times()
        code, output, errors = _run(["wrk", *options, f"http://127.0.0.1:{port}/"], env, seconds)
        after = os.times()
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if code != 0 or not lines:
        raise BenchError(f"wrk failed: {errors.strip() or output.strip()}")
    result = json.loads(lines[-1])
    if result["wrong"] or result["broken"] or not result["requests"]:
        raise BenchError(
            f"{result['wrong']} wrong responses, {result['broken']} broken connections: {result['example']}"
        )
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return Load(result["requests"], result["seconds"], result["p50_ms"], result["p99_ms"], cpu_s)


def _run(argv: Sequence[str], env: Mapping[str, str], seconds: float) -> tuple[int, str, str]:
    """Runs wrk and returns its exit code, stdout and stderr.

    wrk only runs for whole seconds, so a shorter run is interrupted. It then still prints its results.
    """
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        if seconds < 1:
            time.sleep(seconds)
            process.send_signal(signal.SIGINT)
        output, errors = process.communicate()
    return process.returncode, output, errors
