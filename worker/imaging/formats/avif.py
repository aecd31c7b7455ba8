"""AVIF."""

from __future__ import annotations

import re

import pyvips

from worker.imaging.formats.heif import open_heif
from worker.imaging.formats.original import Frames, Original, original_of
from worker.imaging.formats.picture import Picture, picture_of
from worker.imaging.formats.source import Source

_ISPE = re.compile(rb"ispe(?=.{4}(.{4})(.{4}))", re.DOTALL)


def probe(source: Source) -> Picture:
    image = _load(source)
    return picture_of(image, image.width, image.height)


def open_original(source: Source, _: Frames) -> Original:
    return original_of(_load(source))


def _load(source: Source) -> pyvips.Image:
    open_heif(source)
    image = pyvips.Image.heifload(source.path, fail_on="truncated", access="sequential")
    source.admit(image.width, image.height)
    return image


def size_of(data: bytes) -> tuple[int, int]:
    """The largest of any item, since what comes first may be a thumbnail."""
    sizes = [(int.from_bytes(size[1]), int.from_bytes(size[2])) for size in _ISPE.finditer(data)]
    return max(sizes, key=lambda size: size[0] * size[1], default=(0, 0))
