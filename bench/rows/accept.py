"""Uploads until their row is committed, without the probe, compared with streaming a body to a file.

Daguerre responds 202 without waiting for a probe. Its workers are suspended, so that they use no CPU.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import turns, usage, wrk
from bench.photographs import SIZES, photograph
from bench.rows.uploads import CONNECTIONS, truncate_files
from bench.targets import BARE, DAGUERRE, Target, comparator, daguerre
from service.launcher.embedded.postgres import Postgres

GOAL = 0.6


def run(folder: Path, *, rounds: int, seconds: float, sizes: Sequence[str]) -> None:  # noqa: ARG001 - one size
    width, height, _ = SIZES["m"]
    body = folder / "m.jpg"
    body.write_bytes(photograph("m"))
    with (
        Postgres(folder / "pg") as postgres,
        daguerre(folder, env={"DAGUERRE_WAIT_S": "0"}) as ours,
        comparator(BARE, folder, postgres) as bare,
        comparator(BARE, folder, postgres, fsync=True) as bare_synced,
        _suspended_workers(ours),
    ):
        first, *others = turns.measure(
            [ours, bare, bare_synced],
            lambda target: _upload(target, body),
            connections=CONNECTIONS,
            seconds=seconds,
            rounds=rounds,
            after_turn=truncate_files,
        )
        kilobytes = body.stat().st_size // 1000
        turns.print_table(
            f"Accepted without a probe: {width} x {height}, {kilobytes} KB, {CONNECTIONS} connections",
            [first, *others],
        )
        turns.print_ratio(first, others[0], GOAL)


@contextlib.contextmanager
def _suspended_workers(target: Target) -> Iterator[None]:
    """Suspends the workers within the block. Stopping them is no use, because `up` would restart them."""
    pids = usage.pids_of("worker", target.roots)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def _upload(target: Target, body: Path) -> wrk.Requests:
    is_ours = target.name == DAGUERRE
    return wrk.Requests(
        paths=[f"/v1/images?key={target.key}"],
        expected=['"success":true', '"status":"processing"'] if is_ours else ['"success": true', '"id": "'],
        method="POST",
        body=body,
        status=202 if is_ours else 200,
    )
