"""The rows of the benchmark that are about hostile load, tried whether they run."""

from __future__ import annotations

import pytest

from tests.test_bench import run_bench


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
