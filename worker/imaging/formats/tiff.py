"""TIFF and BigTIFF, of one page or several."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyvips

from service.probes import Rejected
from worker.imaging.containers.tiff import LAYOUTS, CutShort, read_contents, walk_directories
from worker.imaging.exif import read_exif
from worker.imaging.exif_tags import ORIENTATION
from worker.imaging.formats.animations import probe_frames
from worker.imaging.formats.fields import pages_of
from worker.imaging.formats.original import Frames, Original, original_of
from worker.imaging.formats.picture import Picture, picture_of
from worker.imaging.formats.source import Source
from worker.imaging.kinds import name_tiff
from worker.imaging.pixels import reduce

# Pages of a TIFF that are not all of one size have to be opened one by one, each by walking there from the first:
# 100 take 0.16 s, 1,000 take 14.
MAX_UNEQUAL_PAGES = 100

# Types that an orientation has: bytes of a BYTE, a SHORT and a LONG.
_INTEGERS = {1: 1, 3: 2, 4: 4}


def probe(source: Source) -> Picture:
    """Every page is decoded: one cut off leaves no trace in the others.

    libtiff reports a strip that ends too early as an error, not as a truncation. The tags are the file's own.
    """
    _refuse_cut(source.fd)
    return replace(_probe_pages(source), exif=read_exif(source.fd))


def open_original(source: Source, which: Frames) -> Original:
    load = _loader(source)
    image = load()
    pages = pages_of(image)
    if which.number is not None and pages > 1:
        image = load(page=min(which.number, pages) - 1)
    source.admit(image.width, image.height)
    return original_of(image, exif=source.fd)


def _loader(source: Source) -> Callable[..., pyvips.Image]:
    """libtiff reports an orientation that is none as an error too: then it is shown a copy that says 1."""
    options = {"fail_on": "error", "access": "sequential"}
    false = _false_orientations(source.fd)
    if not false:
        return partial(pyvips.Image.tiffload, source.path, **options)
    data = bytearray(Path(source.path).read_bytes())
    for at, entry in false:
        data[at : at + len(entry)] = entry
    return partial(pyvips.Image.tiffload_buffer, bytes(data), **options)


def _probe_pages(source: Source) -> Picture:
    load = _loader(source)
    image = load()
    pages = pages_of(image)
    source.admit(image.width, image.height, pages)
    if pages == 1:
        return picture_of(image, image.width, image.height)
    try:
        tall = load(n=-1)
    except pyvips.Error:
        return _probe_unequal_pages(source, load, image, pages)
    return probe_frames(source, tall, checked_pixels=source.max_pixels)


def _probe_unequal_pages(source: Source, load: Callable[..., pyvips.Image], first: pyvips.Image, pages: int) -> Picture:
    if pages > MAX_UNEQUAL_PAGES:
        raise Rejected("too-many-pixels")
    picture = picture_of(first, first.width, first.height, pages=pages)
    seen = first.width * first.height
    for page in range(1, pages):
        image = load(page=page)
        seen += image.width * image.height
        source.admit(seen, 1)
        reduce(image, None)
    return picture


def _refuse_cut(fd: int) -> None:
    """Refuse a file that is not all there, or of a kind that libtiff does not decode.

    libtiff shows the pages before a directory that is cut off, and never looks at what lies inside of pages.
    """
    try:
        contents = read_contents(partial(_read_at, fd), os.fstat(fd).st_size)
    except CutShort:
        raise Rejected("damaged-image") from None
    if kind := name_tiff(os.pread(fd, 16, 0), contents):
        raise Rejected("unsupported-image", kind)


def _read_at(fd: int, size: int, at: int) -> bytes:
    return os.pread(fd, size, at) if at < 1 << 63 else b""


def _false_orientations(fd: int) -> list[tuple[int, bytes]]:
    """Entries of any page whose orientation is not 1 to 8: where each lies, and one that says 1 to put there."""
    head = os.pread(fd, 16, 0)
    layout = LAYOUTS[head[:4]]
    upright = layout.packed.pack(ORIENTATION, 3, 1, (1).to_bytes(2, layout.order))
    false = []
    for directory in walk_directories(partial(_read_at, fd), os.fstat(fd).st_size, layout, layout.first(head)):
        for entry in directory.entries:
            if entry.tag == ORIENTATION:
                value = layout.number(entry.field[: _INTEGERS.get(entry.kind, 0)])
                if not 1 <= value <= 8:
                    false.append((entry.at, upright))
    return false
