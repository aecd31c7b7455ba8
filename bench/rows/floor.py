"""The minimum cost of a photograph, on all cores: decoding alone, the complete probe, and a complete rendition."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pyvips

from bench import turns
from bench.photographs import SIZES, photograph
from service.renditions.transformation import Transformation
from worker import imaging
from worker.imaging.formats.turbo_jpegs import decode_turbo
from worker.sandbox import limits

_RENDITION = Transformation("jpeg", 80, width=300)


@dataclass(frozen=True, slots=True)
class Result:
    """What one process (or all together) did in one turn."""

    files: int
    seconds: float
    cpu_s: float


def run(folder: Path, *, rounds: int, seconds: float, sizes: Sequence[str]) -> None:
    cores = len(os.sched_getaffinity(0))
    print(f"\nFloor: {cores} processes, one per core\n")
    print("| photograph | work | files/s, median (min to max) | CPU ms per file |")
    print("|---|---|---|---|")
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn"), initializer=_prepare) as processes:
        for size in sizes:
            path = folder / f"{size}.jpg"
            path.write_bytes(photograph(size))
            width, height, _ = SIZES[size]
            # The largest shrink factor that still has enough pixels for the rendition.
            shrink = next(shrink for shrink in (8, 4, 2, 1) if shrink * (_RENDITION.width or 0) <= width)
            tasks: dict[str, Callable[[str], object]] = {
                "decoding at 1/8 by libvips": partial(_decode_by_libvips, 8),
                "decoding at 1/8 by libjpeg-turbo": partial(_decode_by_turbo, width, height, 8),
                "the whole probe": _probe,
                f"decoding at 1/{shrink} by libvips": partial(_decode_by_libvips, shrink),
                f"decoding at 1/{shrink} by libjpeg-turbo": partial(_decode_by_turbo, width, height, shrink),
                "a whole rendition, 300 pixels wide": _render,
            }
            results_by_task: dict[str, list[Result]] = {name: [] for name in tasks}
            for _ in range(rounds):
                for name, task in tasks.items():
                    measure = partial(_repeat, task, str(path), seconds)
                    results = list(processes.map(measure, range(cores)))
                    files, cpu_s = sum(result.files for result in results), sum(result.cpu_s for result in results)
                    results_by_task[name].append(Result(files, max(result.seconds for result in results), cpu_s))
            for name, results in results_by_task.items():
                spread = turns.format_spread([result.files / result.seconds for result in results], 0)
                cpu_ms = sum(result.cpu_s for result in results) / sum(result.files for result in results) * 1000
                print(f"| {size}, {width} x {height} | {name} | {spread} | {cpu_ms:.2f} |")


def _prepare() -> None:
    """Prepares this process as a decoder process prepares itself."""
    limits.keep_freed_memory()
    imaging.prepare()


def _repeat(task: Callable[[str], object], path: str, seconds: float, _: int) -> Result:
    files, started, cpu_started = 0, time.monotonic(), time.process_time()
    while files == 0 or time.monotonic() - started < seconds:
        task(path)
        files += 1
    return Result(files, time.monotonic() - started, time.process_time() - cpu_started)


def _probe(path: str) -> None:
    imaging.probe(path, max_pixels=1_000_000_000)


def _decode_by_libvips(shrink: int, path: str) -> None:
    image = pyvips.Image.jpegload_buffer(Path(path).read_bytes(), shrink=shrink, access="sequential")
    pyvips.Region.new(image).fetch(0, 0, image.width, image.height)


def _decode_by_turbo(width: int, height: int, shrink: int, path: str) -> None:
    data = Path(path).read_bytes()
    assert decode_turbo(data, width=width, height=height, components=3, shrink=shrink) is not None


def _render(path: str) -> None:
    imaging.render(path, _RENDITION, watermark=None, max_pixels=1_000_000_000)
