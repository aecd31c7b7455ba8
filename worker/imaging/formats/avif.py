"""AVIF. libvips applies the rotation and mirroring of the container."""

from __future__ import annotations

from dataclasses import replace

import pyvips

from worker.file_headers import file_reader
from worker.imaging.containers.isobmff import HeifFile
from worker.imaging.formats.format import (
    DecodedPicture,
    Format,
    FrameSelection,
    Original,
    decode_picture,
    original_from,
)
from worker.imaging.formats.heif import applied_orientation, find_exif, open_heif
from worker.imaging.formats.heif_colours import read_heif_colours
from worker.imaging.formats.source import Source
from worker.imaging.location_removal.heif import blank_heif


def probe(source: Source) -> DecodedPicture:
    file, image = _open(source)
    picture = decode_picture(image, image.width, image.height, exif=_find_exif(source, file))
    return replace(picture, orientation=1, applied_orientation=applied_orientation(file))


def open_original(source: Source, _: FrameSelection) -> Original:
    file, image = _open(source)
    return replace(original_from(image, exif=_find_exif(source, file)), orientation=1)


def _open(source: Source) -> tuple[HeifFile, pyvips.Image]:
    file = open_heif(source, "AVIF", b"av01")
    image = source.load(pyvips.Image.heifload_source, fail_on="truncated", access="sequential")
    source.check_size(image.width, image.height)
    return file, read_heif_colours(source, file).apply(image)


def _find_exif(source: Source, file: HeifFile) -> bytes | None:
    return find_exif(file, file_reader(source.fd))


FORMAT = Format("avif", ("HeifSource", "HeifBuffer"), probe, open_original, blank_heif)
