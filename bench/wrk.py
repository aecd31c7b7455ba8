"""Load from wrk, a process of its own that is far from being the bottleneck; every answer is checked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_SCRIPT = Path(__file__).with_name("request.lua")


class BenchError(Exception):
    """The benchmark cannot say anything: a tool is missing, or an answer was wrong."""


@dataclass(frozen=True, slots=True)
class Requests:
    """What to send, over and over. `paths` are taken in turn; `expected` texts are in every right answer."""

    paths: Sequence[str]
    expected: Sequence[str]
    method: str = "GET"
    body: Path | None = None
    status: int = 200


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
        }
        options = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "60s", "-s", str(_SCRIPT)]
        before = os.times()
        done = subprocess.run(
            ["wrk", *options, f"http://127.0.0.1:{port}/"], env=env, capture_output=True, text=True, check=False
        )
        after = os.times()
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not lines:
        raise BenchError(f"wrk failed: {done.stderr.strip() or done.stdout.strip()}")
    said = json.loads(lines[-1])
    if said["wrong"] or said["broken"] or not said["requests"]:
        raise BenchError(f"{said['wrong']} wrong answers, {said['broken']} broken connections: {said['example']}")
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return Load(said["requests"], said["seconds"], said["p50_ms"], said["p99_ms"], cpu_s)
