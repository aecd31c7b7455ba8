"""Every row of the benchmark runs and prints its tables. No speed is checked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.figures import Figures
from tests.support.comparators import command_of


def run_bench(*options: str) -> str:
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-m", "bench", *options], cwd=root, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def run_row(name: str, *options: str, seconds: float = 0.4) -> str:
    """Runs a row with short turns. Each service must respond at least once in `seconds`, also on a busy machine."""
    return run_bench(name, "--rounds", "1", "--seconds", str(seconds), *options)


@pytest.mark.needs("wrk")
@pytest.mark.timeout(240)  # npm installs
def test_uploads() -> None:
    command_of("fastify_sharp")
    printed = run_row("uploads", "--sizes", "s", seconds=1)
    for name in ("Daguerre", "fastify + sharp", "FastAPI + Pillow", "FastAPI + Pillow, fsync"):
        assert f"\n| {name} | " in printed
    assert "Daguerre / fastify + sharp: " in printed


@pytest.mark.needs("wrk")
@pytest.mark.timeout(120)
def test_growth() -> None:
    printed = run_row("growth", "--images", "200,400", "--work", "list by a tag, page;delete")
    for work in ("list by a tag, page 20", "delete", "sweep"):
        assert f"\nGrowth, {work}" in printed
        assert f"\nCost of growth, {work}: " in printed
    assert "\n| 400 images | " in printed
    assert "its time budget 10 s: " in printed


@pytest.mark.needs("wrk")
def test_workers() -> None:
    printed = run_row("workers", "--jobs", "200")
    for workers in (1, 2, 4):
        assert f"\n| {workers} | " in printed
    assert "\nIt saturates at " in printed or "\nIt does not saturate " in printed


@pytest.mark.needs("wrk")
def test_footprint(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    run_row("footprint", "--loaded", "2000", "--json", str(file))
    figures = Figures.load(file)
    assert figures.table("Footprint, rows").value("images_pkey", "bytes per row") > 8
    assert figures.table("Footprint, writes").line("Private memory of a connection, median, MB") > 0
    assert figures.table("Footprint, queue").value("16", "all") > 0


@pytest.mark.needs("wrk")
def test_floor() -> None:
    printed = run_row("floor", "--sizes", "s")
    for work in (
        "decoding at 1/8 by libvips",
        "decoding at 1/8 by libjpeg-turbo",
        "the whole probe",
        "decoding at 1/2 by libjpeg-turbo",
        "a whole rendition, 300 pixels wide",
    ):
        assert f"\n| s, 640 x 480 | {work} | " in printed


@pytest.mark.needs("wrk")
def test_accept() -> None:
    printed = run_row("accept", seconds=1)
    for name in ("Daguerre", "bare aiohttp", "bare aiohttp, fsync"):
        assert f"\n| {name} | " in printed
    assert "\nDaguerre / bare aiohttp: " in printed


@pytest.mark.needs("wrk")
def test_reads() -> None:
    printed = run_row("reads")
    for name in ("Daguerre", "bare aiohttp", "FastAPI + Pillow"):
        assert f"\n| {name} | " in printed
    assert "\nDaguerre / bare aiohttp: " in printed
    assert "\nDaguerre / FastAPI + Pillow: " in printed


@pytest.mark.needs("wrk")
def test_queue() -> None:
    printed = run_row("queue")
    assert "\n| from the job enqueued to the reply | " in printed
    assert "\n| the probe alone | " in printed
    for name in ("Added by the queue, p50 ms: ", "Added by the queue, p99 ms: ", "CPU of an idle worker over 0.4 s, "):
        assert f"\n{name}" in printed


@pytest.mark.needs("wrk")
def test_memory() -> None:
    printed = run_row("memory", "--uploads", "8")
    assert "\n| start | 0 | " in printed
    assert "\n| 1 | " in printed
    assert "\nPeak of the API process, MB: " in printed


@pytest.mark.needs("wrk")
def test_previews() -> None:
    printed = run_row("previews")
    assert "\n| Daguerre | " in printed
    assert "\n| sharp at its best | " in printed
    assert "\nAll of Daguerre's within 500 bytes: yes\n" in printed


@pytest.mark.needs("wrk")
def test_slow_clients() -> None:
    printed = run_bench("slow", "--rounds", "1", "--seconds", "1", "--clients", "20")
    for name in ("metadata", "uploads of 640 x 480"):
        assert f"\n| {name} | " in printed


@pytest.mark.needs("wrk")
def test_connections() -> None:
    printed = run_bench("connections", "--rounds", "1", "--connections", "200")
    assert "\n| 1 | 200 x 200 | " in printed
    for kind in ("upload", "metadata", "rendition from memory", "new rendition", "search", "tag", "delete"):
        assert f"\n| {kind} | " in printed
    assert "\nNeither success nor 503 with Retry-After: 0 of 200, target none: reached\n" in printed
    assert "\nSlowest recovery, ms until all three have succeeded: " in printed


@pytest.mark.needs("wrk")
@pytest.mark.timeout(120)
def test_storm() -> None:
    printed = run_bench("storm", "--rounds", "1", "--uploads", "5")
    assert "\n| 1 | 5 x 200 | " in printed
    assert "of the 5 images: 5 images, " in printed
    assert ": no problems." in printed


@pytest.mark.needs("wrk")
@pytest.mark.timeout(240)  # npm and pip install
def test_renditions_uncached() -> None:
    for name in ("bare_sharp", "thumbor"):
        command_of(name)
    printed = run_row("renditions", "--work", "uncached, 4;photographs, 2")
    for name in ("Daguerre", "sharp", "thumbor"):
        assert f"\n| {name} | " in printed
    assert "\nPhotographs, 100 of 2040 x 1530, 522 KB, to 512 x 384, 2 in flight; bytes: Daguerre " in printed
    assert "\nUncached, 2000 x 1500, 254 KB, to 300 x 225, 4 in flight; " in printed
    assert "\nCPU of Daguerre / sharp: " in printed
    assert "\nDaguerre / thumbor: " in printed


@pytest.mark.needs("wrk")
@pytest.mark.timeout(120)
def test_renditions_cached() -> None:
    printed = run_row("renditions", "--work", "cached;at once")
    for name in ("Daguerre", "bare aiohttp"):
        assert f"\n| {name} | " in printed
    assert "\nDaguerre / bare aiohttp: " in printed
    assert "\nCached on disk, 8.8 KB, 16 connections, one process\n" in printed
    assert "\n| 1 | 500 x 200 | " in printed
    assert "\nRenders for 500 requests at once: " in printed
