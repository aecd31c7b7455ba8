"""Fixtures of the tests of probes: bytes are probed in this process, without a sandbox."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from service.images.probe import Probe, Rejected
from tests.unit.imaging.probes import ProbeBytes
from worker import imaging


@pytest.fixture(scope="session", autouse=True)
def _prepared() -> None:
    imaging.prepare()


@pytest.fixture
def probe(tmp_path: Path) -> ProbeBytes:
    def run(data: bytes, max_pixels: int = 100_000_000) -> Probe:
        path = tmp_path / "picture"
        path.write_bytes(data)
        return imaging.probe(str(path), max_pixels=max_pixels)

    return run


@pytest.fixture
def refusal(probe: ProbeBytes) -> Callable[..., str]:
    def run(data: bytes, max_pixels: int = 100_000_000) -> str:
        with pytest.raises(Rejected) as caught:
            probe(data, max_pixels)
        return caught.value.code

    return run
