"""The cost of a photograph on all cores: decoding alone, the whole probe, and a whole rendition."""

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
from worker.imaging.formats.small_jpegs import decode_small
from worker.sandbox import limits

_RENDITION = Transformation("jpeg", 80, width=300)


@dataclass(frozen=True, slots=True)
class Rate:
    files: int
    seconds: float
    cpu_s: float


def run(folder: Path, *, rounds: int, seconds: float, sizes: Sequence[str]) -> None:
    cores = len(os.sched_getaffinity(0))
    print(f"\nFloor: one process a core, {cores} of them at once\n")
    print("| photograph | work | files/s, median (least to most) | CPU ms a file |")
    print("|---|---|---|---|")
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn"), initializer=_prepare) as processes:
        for size in sizes:
            path = folder / f"{size}.jpg"
            path.write_bytes(photograph(size))
            width, height, _ = SIZES[size]
            # The fewest pixels that the rendition needs.
            shrink = next(shrink for shrink in (8, 4, 2, 1) if shrink * (_RENDITION.width or 0) <= width)
            works: dict[str, Callable[[str], object]] = {
                "decoding alone": _decode,
                "the whole probe": _probe,
                f"decoding at 1/{shrink} by libvips": partial(_decode_by_libvips, shrink),
                f"decoding at 1/{shrink} by Pillow": partial(_decode_by_pillow, width, height, shrink),
                "a whole rendition, 300 pixels wide": _render,
            }
            measured: dict[str, list[Rate]] = {name: [] for name in works}
            for _ in range(rounds):
                for name, work in works.items():
                    measure = partial(_repeat, work, str(path), seconds)
                    results = list(processes.map(measure, range(cores)))
                    files, cpu_s = sum(rate.files for rate in results), sum(rate.cpu_s for rate in results)
                    measured[name].append(Rate(files, max(rate.seconds for rate in results), cpu_s))
            for name, rates in measured.items():
                spread = turns.spread([rate.files / rate.seconds for rate in rates], 0)
                cpu_ms = sum(rate.cpu_s for rate in rates) / sum(rate.files for rate in rates) * 1000
                print(f"| {size}, {width} x {height} | {name} | {spread} | {cpu_ms:.2f} |")


def _prepare() -> None:
    """As a child process is."""
    limits.keep_freed_memory()
    imaging.prepare()


def _repeat(work: Callable[[str], object], path: str, seconds: float, _: int) -> Rate:
    files, began, cpu_began = 0, time.monotonic(), time.process_time()
    while files == 0 or time.monotonic() - began < seconds:
        work(path)
        files += 1
    return Rate(files, time.monotonic() - began, time.process_time() - cpu_began)


def _decode(path: str) -> None:
    """Decodes all of it at an eighth of its size, the cheapest check that it is whole."""
    image = pyvips.Image.jpegload_buffer(Path(path).read_bytes(), shrink=8, fail_on="warning", access="sequential")
    pyvips.Region.new(image).fetch(0, 0, image.width, image.height)


def _probe(path: str) -> None:
    imaging.probe(path, max_pixels=1_000_000_000)


def _decode_by_libvips(shrink: int, path: str) -> None:
    image = pyvips.Image.jpegload_buffer(Path(path).read_bytes(), shrink=shrink, access="sequential")
    pyvips.Region.new(image).fetch(0, 0, image.width, image.height)


def _decode_by_pillow(width: int, height: int, shrink: int, path: str) -> None:
    decode_small(Path(path).read_bytes, width, height, shrink)


def _render(path: str) -> None:
    imaging.render(path, _RENDITION, watermark=None, max_pixels=1_000_000_000)
