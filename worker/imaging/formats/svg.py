"""SVG, drawn by librsvg in the size that is needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyvips

from service.probes import Rejected
from worker.imaging.formats.embedded import embedded_pixels
from worker.imaging.formats.original import Frames, Original
from worker.imaging.formats.picture import Picture, picture_of
from worker.imaging.formats.source import Source
from worker.imaging.pixels import SMALL_PX


def probe(source: Source) -> Picture:
    file = _open_file(source)
    width, height = file.image.width, file.image.height
    scale = max(2 * SMALL_PX / max(width, height), 1 / min(width, height))
    return picture_of(file.load(scale) if scale < 1 else file.image, width, height)


def open_original(source: Source, _: Frames) -> Original:
    file = _open_file(source)

    def load(scale: float) -> pyvips.Image:
        return file.image if scale == 1 else file.load(scale)

    return Original(file.image.width, file.image.height, load, drawing=True)


def _open_file(source: Source) -> _SvgFile:
    data = Path(source.path).read_bytes()
    source.admit(embedded_pixels(data), 1)
    image = _draw(data, 1)
    width, height = image.width, image.height
    source.admit(width, height)
    if 1 in {width, height} and not _is_tiny(data):
        raise Rejected("too-many-pixels")
    return _SvgFile(data, image)


@dataclass(frozen=True, slots=True)
class _SvgFile:
    """In memory: without a base address librsvg fetches nothing that the picture refers to."""

    data: bytes
    image: pyvips.Image

    def load(self, scale: float) -> pyvips.Image:
        return _draw(self.data, scale)


def _draw(data: bytes, scale: float) -> pyvips.Image:
    """At 96 dots an inch, as CSS has it; libvips counts them as a scale of 96/72 for all lengths."""
    return pyvips.Image.svgload_buffer(data, dpi=96, scale=0.75 * scale)


def _is_tiny(data: bytes) -> bool:
    """libvips says 1 pixel where a side has more than 100,000,000, and fails where it has more than 2^31."""
    try:
        larger = _draw(data, 25)
    except pyvips.Error:
        return False
    return bool(larger.width > 1 and larger.height > 1)
