"""Load from wrk, a process of its own that is far from being the bottleneck; every answer is checked."""

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

# In a path: another six hexadecimal digits in each request of a run, which are enough for 1,024 turns.
FRESH = "{fresh}"
_FRESH_IN_A_TURN = 1 << 14
_next_fresh = itertools.count(0, _FRESH_IN_A_TURN)


class BenchError(Exception):
    """The benchmark cannot say anything: a tool is missing, or an answer was wrong."""


@dataclass(frozen=True, slots=True)
class Requests:
    """What to send, over and over. `paths` are taken in turn, and may have FRESH in them; `expected` texts are in every
    right answer, which is a whole JPEG where `jpeg` says so.
    """

    paths: Sequence[str]
    expected: Sequence[str]
    method: str = "GET"
    body: Path | None = None
    status: int = 200
    jpeg: bool = False


@dataclass(frozen=True, slots=True)
class Load:
    """What came of it. `cpu_s` is wrk's own."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    cpu_s: float

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


def require() -> None:
    if shutil.which("wrk") is None:
        raise BenchError("wrk is needed for the load: install it (Debian: apt install wrk).")


def send(requests: Requests, port: int, *, connections: int, seconds: float) -> Load:
    """Keep `connections` busy for some seconds. Raises BenchError if any answer was not right."""
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
        code, printed, complaints = _run(["wrk", *options, f"http://127.0.0.1:{port}/"], env, seconds)
        after = os.times()
    lines = [line for line in printed.splitlines() if line.startswith("{")]
    if code != 0 or not lines:
        raise BenchError(f"wrk failed: {complaints.strip() or printed.strip()}")
    said = json.loads(lines[-1])
    if said["wrong"] or said["broken"] or not said["requests"]:
        raise BenchError(f"{said['wrong']} wrong answers, {said['broken']} broken connections: {said['example']}")
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return Load(said["requests"], said["seconds"], said["p50_ms"], said["p99_ms"], cpu_s)


def _run(argv: Sequence[str], env: Mapping[str, str], seconds: float) -> tuple[int, str, str]:
    """wrk counts whole seconds; it also ends, and prints what it has, when it is interrupted."""
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        if seconds < 1:
            time.sleep(seconds)
            process.send_signal(signal.SIGINT)
        printed, complaints = process.communicate()
    return process.returncode, printed, complaints
