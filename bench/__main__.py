"""`./run bench`: compares Daguerre with alternatives, on this machine, in this run.

    ./run bench [ROW…] [--sizes s,m,l] [--rounds 5] [--seconds 5]

bench/README.md explains each row.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import machine, wrk
from bench.figures import recording
from bench.photographs import SIZES
from bench.rows import (
    accept,
    connections,
    faults,
    floor,
    footprint,
    growth,
    memory,
    previews,
    prices,
    queue,
    reads,
    renditions,
    slow,
    storm,
    uploads,
    workers,
)
from tests.support.folders import temporary_folder

ROWS: dict[str, Callable[..., None]] = {
    "uploads": uploads.run,
    "floor": floor.run,
    "accept": accept.run,
    "reads": reads.run,
    "renditions": renditions.run,
    "queue": queue.run,
    "memory": memory.run,
    "previews": previews.run,
    "prices": prices.run,
    "growth": growth.run,
    "workers": workers.run,
    "footprint": footprint.run,
    "storm": storm.run,
    "slow": slow.run,
    "connections": connections.run,
    "faults": faults.run,
}

# Between rows: after many deletions the file system creates files slowly for some seconds (rows/uploads.py).
_PAUSE_S = 6


def read_options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./run bench", description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--sizes", default=",".join(SIZES), help="photographs to upload (s,m,l)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each service (5)")
    parser.add_argument("--seconds", type=float, default=5, help="length of a turn (5)")
    parser.add_argument("--images", default="10000,1000000", help="of growth: images in the database (10000,1000000)")
    parser.add_argument(
        "--work",
        default="",
        help="of growth and renditions: only work whose name begins with one of these (separated by ;)",
    )
    parser.add_argument("--jobs", type=int, default=workers.JOBS, help=f"of workers: jobs a turn ({workers.JOBS})")
    parser.add_argument(
        "--uploads", type=int, help=f"of memory and storm: concurrent uploads ({memory.UPLOADS} and {storm.UPLOADS})"
    )
    parser.add_argument("--clients", type=int, default=slow.CLIENTS, help=f"of slow: slow clients ({slow.CLIENTS})")
    parser.add_argument(
        "--connections",
        type=int,
        default=connections.CONNECTIONS,
        help=f"of connections: connections at once ({connections.CONNECTIONS})",
    )
    parser.add_argument(
        "--storage",
        choices=["disk", "s3"],
        default="disk",
        help="of memory, uploads and renditions cached on disk: s3 measures Daguerre on an object store, beside"
        " Daguerre on the disk (disk)",
    )
    parser.add_argument(
        "--loaded",
        type=int,
        default=footprint.IMAGES,
        help=f"of footprint: images in the database ({footprint.IMAGES})",
    )
    parser.add_argument("--json", type=Path, help="add the tables to this file, e.g. bench/figures.json")
    options = parser.parse_args(arguments)
    # Not `choices`: argparse of Python 3.11 checks the default list against them as if it were one row.
    unknown = [row for row in options.rows if row not in ROWS]
    if unknown:
        parser.error(f"unknown row {unknown[0]}; the rows are {', '.join(ROWS)}")
    options.rows = options.rows or list(ROWS)
    return options


def main() -> None:
    options = read_options(sys.argv[1:])
    row_options: dict[str, dict[str, Any]] = {
        "growth": {"images": [int(count) for count in options.images.split(",")], "only": options.work.split(";")},
        "renditions": {"only": options.work.split(";"), "on_s3": options.storage == "s3"},
        "workers": {"count": options.jobs},
        "footprint": {"images": options.loaded},
        "memory": {"count": options.uploads or memory.UPLOADS, "on_s3": options.storage == "s3"},
        "uploads": {"on_s3": options.storage == "s3"},
        "storm": {"count": options.uploads or storm.UPLOADS},
        "slow": {"clients": options.clients},
        "connections": {"count": options.connections},
    }
    try:
        wrk.require()
        with recording(options.json, shlex.join(["./run", "bench", *sys.argv[1:]])):
            print(f"{datetime.now(UTC):%Y-%m-%d}, {machine.describe()}")
            for number, row in enumerate(options.rows):
                if number:
                    os.sync()
                    time.sleep(_PAUSE_S)
                with temporary_folder() as folder:
                    sizes = options.sizes.split(",")
                    ROWS[row](
                        folder, rounds=options.rounds, seconds=options.seconds, sizes=sizes, **row_options.get(row, {})
                    )
    except wrk.BenchError as error:
        sys.exit(f"bench: {error}")


if __name__ == "__main__":
    main()
