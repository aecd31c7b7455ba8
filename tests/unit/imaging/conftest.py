"""Probing and rendering of bytes, and the removal of their locations, in the test's own process."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from service.images.probe import Probe, Rejected
from service.renditions.transformation import Transformation
from tests.support.imaging import Find, ProbeBytes, RenderBytes, RenderFile, Shown, Strip
from tests.support.locations import patched
from worker import imaging
from worker.imaging.location_removal.regions import Patch
from worker.imaging.operations import find_locations


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


@pytest.fixture
def render_file(path: Path, tmp_path: Path) -> RenderFile:
    """Renders with the parameters of a Transformation and the bytes of a watermark, and returns the file's bytes."""

    def run(data: bytes, *, mark: bytes | None = None, max_pixels: int = 100_000_000, **params: Any) -> bytes:
        mark_path = tmp_path / "mark"
        path.write_bytes(data)
        if mark is not None:
            mark_path.write_bytes(mark)
        transformation = Transformation(**{"format": "png", "quality": 90, **params})
        return imaging.render(
            str(path), transformation, watermark=None if mark is None else str(mark_path), max_pixels=max_pixels
        )

    return run


@pytest.fixture
def shown(render_file: RenderFile) -> Shown:
    """Renders like `render_file`, and opens the rendition."""

    def run(data: bytes, **params: Any) -> Image.Image:
        image = Image.open(io.BytesIO(render_file(data, **params)))
        image.load()
        return image

    return run


@pytest.fixture
def render_refusal(render_file: RenderFile) -> Callable[..., str]:
    """The code of the error that a rendering of these bytes raises."""

    def run(data: bytes, **params: Any) -> str:
        with pytest.raises(Rejected) as caught:
            render_file(data, **params)
        return caught.value.code

    return run


@pytest.fixture
def find(path: Path) -> Find:
    """The patches that remove the locations of these bytes, whose file stays as it is."""

    def run(data: bytes) -> list[Patch]:
        path.write_bytes(data)
        result = find_locations(str(path))
        assert path.read_bytes() == data
        return result

    return run


@pytest.fixture
def strip(find: Find) -> Strip:
    """These bytes without locations."""

    def run(data: bytes) -> bytes:
        return patched(data, find(data))

    return run
