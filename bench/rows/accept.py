"""What an upload costs up to its durable row, without the probe, against a body that is streamed to a file and no more.

Daguerre answers 202 at once, and its workers are paused, so that they take nothing from it.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import turns, usage, wrk
from bench.photographs import SIZES, photograph
from bench.rows.uploads import CONNECTIONS, empty
from bench.targets import BARE, DAGUERRE, Target, comparator, daguerre
from service.launcher.embedded.postgres import Postgres

TARGET = 0.5


def run(folder: Path, *, rounds: int, seconds: float, sizes: Sequence[str]) -> None:  # noqa: ARG001 - one size
    width, height, _ = SIZES["m"]
    body = folder / "m.jpg"
    body.write_bytes(photograph("m"))
    with (
        Postgres(folder / "pg") as postgres,
        daguerre(folder, env={"DAGUERRE_WAIT_S": "0"}) as ours,
        comparator(BARE, folder, postgres) as bare,
        comparator(BARE, folder, postgres, fsync=True) as bare_synced,
        _paused_workers(ours),
    ):
        first, *others = turns.take(
            [ours, bare, bare_synced],
            lambda subject: _upload(subject, body),
            connections=CONNECTIONS,
            seconds=seconds,
            rounds=rounds,
            between=empty,
        )
        kilobytes = body.stat().st_size // 1000
        turns.show(
            f"Accepted without a probe: {width} x {height}, {kilobytes} KB, {CONNECTIONS} connections",
            [first, *others],
        )
        turns.compare(first, others[0], TARGET)


@contextlib.contextmanager
def _paused_workers(subject: Target) -> Iterator[None]:
    """Stopped rather than ended: `up` would start them again."""
    pids = usage.pids_of("worker", subject.roots)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def _upload(subject: Target, body: Path) -> wrk.Requests:
    is_ours = subject.name == DAGUERRE
    return wrk.Requests(
        paths=[f"/v1/images?key={subject.key}"],
        expected=['"success":true', '"status":"processing"'] if is_ours else ['"success": true', '"id": "'],
        method="POST",
        body=body,
        status=202 if is_ours else 200,
    )
