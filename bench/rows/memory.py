"""The memory of one API process under 64 concurrent uploads of 5 MB.

In every turn all uploads begin at the same time, after all pictures of the last turn were probed.
"""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from bench import turns, usage, wrk
from bench.photographs import render
from bench.targets import daguerre

UPLOADS = 64
WIDTH, HEIGHT, BYTES = 4000, 3000, 5_500_000  # the file may be up to a tenth smaller
MAX_MB = 150
MAX_MB_ON_S3 = 180
_IDLE_TIMEOUT_S = 60
# Long enough for all uploads to arrive and for the first response, also on a slow machine.
_MIN_TURN_S, _TURN_S_PER_UPLOAD = 2, 5 / 64


def run(
    folder: Path,
    *,
    rounds: int,
    seconds: float,
    sizes: Sequence[str],  # noqa: ARG001 - one size
    count: int = UPLOADS,
    on_s3: bool = False,
) -> None:
    body = folder / "upload.jpg"
    body.write_bytes(render(WIDTH, HEIGHT, BYTES))
    # The maximum wait, so that a slow machine responds 200 like a fast one.
    env = {"DAGUERRE_API_PROCESSES": "1", "DAGUERRE_WAIT_S": "60"}
    with daguerre(folder, env=env, on_s3=on_s3) as target:
        requests = wrk.Requests(
            paths=[f"/v1/images?key={target.key}"],
            expected=['"success":true', f'"width":{WIDTH}', f'"height":{HEIGHT}'],
            method="POST",
            body=body,
        )
        store = ", on S3" if on_s3 else ""
        print(f"\nMemory under {count} concurrent uploads{store}: {body.stat().st_size / 1e6:.1f} MB each\n")
        print(
            "| turn | uploads | API: peak so far MB | API: after the turn MB | peak MB of the largest libvips, worker |"
        )
        print("|---|---|---|---|---|")
        print(_row("start", 0, usage.by_part(target.roots)))
        for turn in range(1, rounds + 1):
            length_s = max(seconds, _MIN_TURN_S, count * _TURN_S_PER_UPLOAD)
            load = wrk.send(requests, target.port, connections=count, seconds=length_s)
            _wait_idle(target.port)
            used = usage.by_part(target.roots)
            print(_row(str(turn), load.requests, used))
        turns.print_maximum("Peak of the API process, MB", used["api"].peak_mb, MAX_MB_ON_S3 if on_s3 else MAX_MB)


def _wait_idle(port: int) -> None:
    """Returns when the queue is empty. Raises BenchError if that takes too long."""
    deadline = time.monotonic() + _IDLE_TIMEOUT_S
    while time.monotonic() < deadline:
        time.sleep(turns.SETTLE_S)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
            if b"\ndaguerre_queue_depth 0.0\n" in response.read():
                return
    raise wrk.BenchError(f"the queue was not empty after {_IDLE_TIMEOUT_S} s")


def _row(turn: str, uploads: int, used: dict[str, usage.Usage]) -> str:
    api, others = used["api"], f"{used['libvips'].peak_mb:.0f}, {used['worker'].peak_mb:.0f}"
    return f"| {turn} | {uploads} | {api.peak_mb:.0f} | {api.current_mb:.0f} | {others} |"
