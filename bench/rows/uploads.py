"""Uploads with metadata and preview, over 16 connections, compared with what one might write instead."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from bench import turns, wrk
from bench.photographs import SIZES, photograph
from bench.targets import DAGUERRE, DAGUERRE_S3, FASTAPI, FASTIFY, Target, comparator, daguerre
from service.launcher.embedded.postgres import Postgres

CONNECTIONS = 16
GOALS = {
    FASTIFY: {"s": 1.75, "m": 1.4, "l": 1.25},
    f"{FASTAPI}, fsync": {"s": 1.15, "m": 1.05, "l": 1.0},
}


# Of the rate on the disk.
S3_GOALS = {"m": 0.5}


def run(folder: Path, *, rounds: int, seconds: float, sizes: Sequence[str], on_s3: bool = False) -> None:
    if on_s3:
        with daguerre(folder, on_s3=True) as ours, daguerre(folder) as on_disk:
            for size in sizes:
                first, other = _measure(folder, size, [ours, on_disk], rounds, seconds)
                turns.print_ratio(first, other, S3_GOALS.get(size, 0))
        return
    with (
        Postgres(folder / "pg") as postgres,
        daguerre(folder) as ours,
        comparator(FASTIFY, folder, postgres) as fastify,
        comparator(FASTAPI, folder, postgres) as fastapi,
        comparator(FASTIFY, folder, postgres, fsync=True) as fastify_synced,
        comparator(FASTAPI, folder, postgres, fsync=True) as fastapi_synced,
    ):
        targets = [ours, fastify, fastapi, fastify_synced, fastapi_synced]
        for size in sizes:
            first, *others = _measure(folder, size, targets, rounds, seconds)
            for other in others:
                goal = GOALS.get(other.target.name, {}).get(size)
                if goal is not None:
                    turns.print_ratio(first, other, goal)


def _measure(folder: Path, size: str, targets: Sequence[Target], rounds: int, seconds: float) -> Sequence[turns.Series]:
    width, height, _ = SIZES[size]
    body = folder / f"{size}.jpg"
    body.write_bytes(photograph(size))
    series = turns.measure(
        targets,
        lambda target: upload(target, body, size),
        connections=CONNECTIONS,
        seconds=seconds,
        rounds=rounds,
        after_turn=truncate_files,
    )
    kilobytes = body.stat().st_size // 1000
    name = f"Uploads {size}, on S3" if series[0].target.name == DAGUERRE_S3 else f"Uploads {size}"
    turns.print_table(f"{name}: {width} x {height}, {kilobytes} KB, {CONNECTIONS} connections", series)
    return series


def upload(target: Target, body: Path, size: str) -> wrk.Requests:
    width, height, _ = SIZES[size]
    return wrk.Requests(
        paths=[f"/v1/images?key={target.key}&with_exif=1&with_mini_preview=1"],
        expected=[
            '"success":true',
            f'"width":{width}',
            f'"height":{height}',
            '"Make":"Daguerre"',
            '"mini_preview":"/9j/',
        ],
        method="POST",
        body=body,
    )


def truncate_files(target: Target) -> None:
    """Truncates the files of a comparator to free disk space, because nothing reads them. Daguerre keeps its files.

    A `.part` may belong to a request that is still being decoded, which would end the process with SIGBUS.

    They are not deleted, because ext4 without a journal visits every inode that was deleted in the last seconds when it
    creates a file. That would slow down the next turn.
    """
    if target.name in {DAGUERRE, DAGUERRE_S3}:
        return
    for path in target.folder.rglob("*.jpg"):
        if path.stat().st_size:
            os.truncate(path, 0)
