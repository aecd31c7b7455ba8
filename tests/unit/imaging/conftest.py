"""Probing and rendering of bytes, in the test's own process."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from service.images.probe import Probe, Rejected
from service.renditions.transformation import Transformation
from tests.support.imaging import ProbeBytes, RenderBytes
from worker import imaging


@pytest.fixture(scope="session", autouse=True)
def _prepared() -> None:
    imaging.prepare()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file that the other fixtures write a picture to."""
    return tmp_path / "picture"


@pytest.fixture
def max_pixels() -> int:
    """The default limit. A module may override it."""
    return 100_000_000


@pytest.fixture
def probe(path: Path, max_pixels: int) -> ProbeBytes:
    default = max_pixels

    def run(data: bytes, max_pixels: int = default) -> Probe:
        path.write_bytes(data)
        return imaging.probe(str(path), max_pixels=max_pixels)

    return run


@pytest.fixture
def render(path: Path, max_pixels: int) -> RenderBytes:
    """Renders with the parameters of a Transformation, as a PNG by default, and opens the rendition."""

    def run(data: bytes, form: str = "png", **parameters: object) -> Image.Image:
        path.write_bytes(data)
        transformation = Transformation(format=form, quality=90, **parameters)  # type: ignore[arg-type]
        return Image.open(io.BytesIO(imaging.render(str(path), transformation, watermark=None, max_pixels=max_pixels)))

    return run


@pytest.fixture
def refusal(probe: ProbeBytes) -> Callable[..., str]:
    """The code of the error that a probe of these bytes raises."""

    def run(data: bytes, max_pixels: int = 100_000_000) -> str:
        with pytest.raises(Rejected) as caught:
            probe(data, max_pixels)
        return caught.value.code

    return run
