"""AVIF."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial

import pyvips

from worker.imaging.containers.isobmff import HeifFile
from worker.imaging.formats.heif import open_heif
from worker.imaging.formats.heif_colours import read_heif_colours
from worker.imaging.formats.heif_metadata import applied_orientation, find_exif
from worker.imaging.formats.original import Frames, Original, original_of
from worker.imaging.formats.picture import Picture, picture_of
from worker.imaging.formats.source import Source


def probe(source: Source) -> Picture:
    file, image = _open_file(source)
    picture = picture_of(image, image.width, image.height, exif=_find_exif(source, file))
    return replace(picture, orientation=1, applied_orientation=applied_orientation(file))


def open_original(source: Source, _: Frames) -> Original:
    file, image = _open_file(source)
    return replace(original_of(image, exif=_find_exif(source, file)), orientation=1)


def _open_file(source: Source) -> tuple[HeifFile, pyvips.Image]:
    """libvips turns the picture as the container says."""
    file = open_heif(source, "AVIF", b"av01")
    image = source.decode(pyvips.Image.heifload_source, fail_on="truncated", access="sequential")
    source.admit(image.width, image.height)
    return file, read_heif_colours(source, file).apply(image)


def _find_exif(source: Source, file: HeifFile) -> bytes | None:
    return find_exif(file, partial(os.pread, source.fd))
