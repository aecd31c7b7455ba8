"""TIFF and BigTIFF, of one page or several."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyvips

from service.probes import Rejected
from worker.imaging.exif import read_exif
from worker.imaging.exif_tags import ORIENTATION
from worker.imaging.formats.animations import probe_frames
from worker.imaging.formats.fields import pages_of
from worker.imaging.formats.original import Frames, Original, original_of
from worker.imaging.formats.picture import Picture, picture_of
from worker.imaging.formats.source import Source
from worker.imaging.pixels import reduce
from worker.imaging.tiff_layouts import LAYOUTS

# Pages of a TIFF that are not all of one size have to be opened one by one, each by walking there from the first:
# 100 take 0.16 s, 1,000 take 14.
MAX_UNEQUAL_PAGES = 100

# Of all pages of a TIFF together, with 15 or so each; directories may lie on each other. 0.2 s.
MOST_ENTRIES = 300_000

# Types that an orientation has: bytes of a BYTE, a SHORT and a LONG.
_INTEGERS = {1: 1, 3: 2, 4: 4}


def probe(source: Source) -> Picture:
    """Every page is decoded: one cut off leaves no trace in the others.

    libtiff reports a strip that ends too early as an error, not as a truncation. The tags are the file's own.
    """
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


def _false_orientations(fd: int) -> list[tuple[int, bytes]]:
    """Entries of any page whose orientation is not 1 to 8: where each lies, and one that says 1 to put there."""
    head = os.pread(fd, 16, 0)
    layout = LAYOUTS[head[:4]]
    upright = layout.packed.pack(ORIENTATION, 3, 1, (1).to_bytes(2, layout.order))
    stored = os.fstat(fd).st_size
    seen: set[int] = set()
    false = []
    left = MOST_ENTRIES
    at = layout.first(head)
    while left > 0 and 0 < at < stored and at not in seen:
        seen.add(at)
        count = os.pread(fd, layout.count, at)
        if len(count) < layout.count:
            break
        entries = layout.number(count)
        left -= max(entries, 1)
        if left < 0:
            break
        start, size = at + layout.count, entries * layout.entry
        table = os.pread(fd, size + layout.word, start)
        if len(table) < size + layout.word:
            break
        for place in range(0, size, layout.entry):
            tag, kind, _, value = layout.packed.unpack_from(table, place)
            if tag == ORIENTATION:
                said = layout.number(value[: _INTEGERS.get(kind, 0)])
                if not 1 <= said <= 8:
                    false.append((start + place, upright))
        at = layout.number(table[size:])
    return false
