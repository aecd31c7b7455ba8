"""The benchmark runs to its end and prints its tables; how fast anything is, is not asked here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.comparators.start import UnavailableError, command
from bench.subjects import NODE_FOLDER


@pytest.mark.needs("wrk")
@pytest.mark.timeout(240)  # npm installs
def test_the_benchmark_of_uploads_prints_a_table_with_ratios() -> None:
    try:
        command("fastify_sharp", NODE_FOLDER)
    except UnavailableError as error:
        pytest.skip(str(error))
    options = ["uploads", "--sizes", "s", "--rounds", "1", "--seconds", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "bench", *options],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in ("Daguerre", "fastify + sharp", "FastAPI + Pillow", "FastAPI + Pillow, fsync"):
        assert f"\n| {name} | " in done.stdout
    assert "Daguerre / fastify + sharp: " in done.stdout


def run_bench(*options: str) -> str:
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "bench", *options], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.needs("wrk")
@pytest.mark.timeout(120)
def test_the_benchmark_of_growth_prints_a_cost_for_each_kind_of_work() -> None:
    printed = run_bench(
        "growth",
        "--images",
        "200,400",
        "--work",
        "list by a tag, page;add_tags;delete",
        "--rounds",
        "1",
        "--seconds",
        "1",
    )
    for work in ("list by a tag, page 20", "add_tags", "delete", "sweep"):
        assert f"\nGrowth, {work}" in printed
        assert f"\nCost of growth, {work}: " in printed
    assert "\n| 400 images | " in printed
    assert "its time budget 10 s: " in printed


@pytest.mark.needs("wrk")
def test_the_benchmark_of_workers_tells_what_a_job_costs_and_where_it_saturates() -> None:
    printed = run_bench("workers", "--jobs", "200", "--rounds", "1")
    for workers in (1, 2, 4):
        assert f"\n| {workers} | " in printed
    assert "\nIt saturates at " in printed or "\nIt does not saturate " in printed
