"""The rows of the benchmark that are about hostile load, and those of renditions, tried whether they run."""

from __future__ import annotations

import pytest

from bench.comparators.start import UnavailableError, command
from bench.subjects import INSTALLED
from tests.test_bench import run_bench, run_row


@pytest.mark.needs("wrk")
def test_the_benchmark_of_slow_clients_prints_a_ratio_for_each_kind_of_request() -> None:
    printed = run_bench("slow", "--rounds", "1", "--seconds", "1", "--clients", "20")
    for name in ("metadata", "uploads of 640 x 480"):
        assert f"\n| {name} | " in printed


@pytest.mark.needs("wrk")
@pytest.mark.timeout(120)
def test_the_benchmark_of_the_storm_finds_every_upload_again() -> None:
    printed = run_bench("storm", "--rounds", "1", "--uploads", "5")
    assert "\n| 1 | 5 x 200 | " in printed
    assert "of the 5 images: 5 images, " in printed
    assert ": all is well." in printed


@pytest.mark.needs("wrk")
@pytest.mark.timeout(240)  # npm and pip install
def test_the_benchmark_of_renditions_prints_their_cost_beside_others() -> None:
    try:
        for name in ("bare_sharp", "thumbor"):
            command(name, INSTALLED)
    except UnavailableError as error:
        pytest.skip(str(error))
    printed = run_row("renditions", "--work", "uncached, 4")
    for name in ("Daguerre", "sharp", "thumbor"):
        assert f"\n| {name} | " in printed
    assert "\nUncached, 2000 x 1500, 254 KB, to 300 x 225, 4 in flight; " in printed
    assert "\nCPU of Daguerre / sharp: " in printed
    assert "\nDaguerre / thumbor: " in printed


@pytest.mark.needs("wrk")
def test_the_benchmark_of_renditions_from_memory_prints_a_ratio_to_bare_aiohttp() -> None:
    printed = run_row("renditions", "--work", "cached")
    for name in ("Daguerre", "bare aiohttp"):
        assert f"\n| {name} | " in printed
    assert "\nDaguerre / bare aiohttp: " in printed


@pytest.mark.needs("wrk")
def test_the_benchmark_of_a_rendition_that_many_ask_for_counts_its_renders() -> None:
    printed = run_row("renditions", "--work", "at once")
    assert "\n| 1 | 500 x 200 | " in printed
    assert "\nRenders for 500 requests at once: " in printed
