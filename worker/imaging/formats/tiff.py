"""TIFF and BigTIFF, of one page or several."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pyvips

from service.images.probe import MAX_PAGES, Rejected
from worker.imaging.containers.tiff import HEAD_BYTES, LAYOUTS, CutShort, Entry, Layout, read_contents, walk_directories
from worker.imaging.exif import TYPES, read_exif
from worker.imaging.exif_tags import ORIENTATION
from worker.imaging.formats.animations import probe_frames
from worker.imaging.formats.fields import pages_of
from worker.imaging.formats.original import Frames, Original, original_of
from worker.imaging.formats.picture import Picture, picture_of
from worker.imaging.formats.source import Source
from worker.imaging.formats.tiff_pixels import (
    PHOTOMETRIC,
    Samples,
    as_integers,
    full_scale,
    needs_full_scale,
    read_samples,
)
from worker.imaging.kinds import name_tiff
from worker.imaging.pixels import reduce

# Pages of a TIFF that are not all of one size have to be opened one by one, each by walking there from the first:
# 100 take 0.16 s, 1,000 take 14.
MAX_UNEQUAL_PAGES = 100

# Of width and height: libvips holds some lines at a time, which took 4 GB where they had 16 million pixels. No other
# format has longer sides.
_MAX_SIDE = 1_000_000

# Types that an orientation has: bytes of a BYTE, a SHORT and a LONG.
_INTEGERS = {1: 1, 3: 2, 4: 4}
# Types of values that are numbers.
_NUMBERS = frozenset(kind for kind, (_, code) in TYPES.items() if code != "s")


def probe(source: Source) -> Picture:
    """Every page is decoded: one cut off leaves no trace in the others.

    libtiff reports a strip that ends too early as an error, not as a truncation. The tags are the file's own.
    """
    _refuse_cut(source)
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
    """Answers with a page, or with `n` of them, in 8 or 16 bits. Raises Rejected for a kind that is not supported.

    libtiff is shown a copy of the file where it would misread an entry.
    """
    options = {"fail_on": "error", "access": "sequential"}
    pages, corrections = _read_pages(source.fd)
    if not corrections:
        decode = partial(source.decode, pyvips.Image.tiffload_source, **options)
    else:
        data = bytearray(source.read_all())
        for at, entry in corrections:
            data[at : at + len(entry)] = entry
        decode = partial(pyvips.Image.tiffload_buffer, bytes(data), **options)

    def load(page: int = 0, n: int = 1) -> pyvips.Image:
        samples = pages[min(page, len(pages) - 1)]
        image, full = decode(page=page, n=n), None
        if max(image.width, image.get_page_height()) > _MAX_SIDE:
            raise Rejected("too-many-pixels")
        if needs_full_scale(samples):
            first = decode(page=page)
            source.admit(first.width, first.height)
            full = full_scale(first)
        return as_integers(image, samples, full=full)

    return load


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


def _refuse_cut(source: Source) -> None:
    """Refuse a file that is not all there, of a kind that libtiff does not decode, or of too many pages.

    libtiff shows the pages before a directory that is cut off, and never looks at what lies inside of pages.
    """
    try:
        size = os.fstat(source.fd).st_size
        contents = read_contents(partial(_read_at, source.fd), size, max_pages=MAX_PAGES)
    except CutShort:
        raise Rejected("damaged-image") from None
    if kind := name_tiff(os.pread(source.fd, HEAD_BYTES, 0), contents):
        raise Rejected("unsupported-image", kind)
    source.admit(1, 1, contents.pages)


def _read_at(fd: int, size: int, at: int) -> bytes:
    return os.pread(fd, size, at) if at < 1 << 63 else b""


def _read_pages(fd: int) -> tuple[list[Samples], list[tuple[int, bytes]]]:
    """What the samples of each page are, and entries to put in the place of others: where, and the bytes.

    Those are of orientations that are none, which libtiff reports as an error, and of pixels that it misreads.
    """
    head = os.pread(fd, HEAD_BYTES, 0)
    layout = LAYOUTS[head[:4]]
    pages: list[Samples] = []
    corrections: list[tuple[int, bytes]] = []
    for directory in walk_directories(partial(_read_at, fd), os.fstat(fd).st_size, layout, layout.first(head)):
        by_tag = {entry.tag: entry for entry in reversed(directory.entries)}
        samples = read_samples(partial(_values, fd, layout, by_tag))
        pages.append(samples)
        for entry in directory.entries:
            if entry.tag == ORIENTATION:
                if not 1 <= layout.number(entry.field[: _INTEGERS.get(entry.kind, 0)]) <= 8:
                    corrections.append((entry.at, _short(layout, ORIENTATION, 1)))
            elif entry.tag == PHOTOMETRIC and samples.decoded_photometric != samples.photometric:
                corrections.append((entry.at, _short(layout, PHOTOMETRIC, samples.decoded_photometric)))
    if not pages:
        raise Rejected("damaged-image")
    return pages, corrections


def _short(layout: Layout, tag: int, value: int) -> bytes:
    return layout.packed.pack(tag, 3, 1, value.to_bytes(2, layout.order))


def _values(fd: int, layout: Layout, by_tag: dict[int, Entry], tag: int, limit: int) -> tuple[float, ...]:
    """The first values of a tag, up to `limit` of them; () if it is missing or not of numbers. Raises Rejected if they
    lie beyond the end of the file.
    """
    entry = by_tag.get(tag)
    if entry is None or entry.kind not in _NUMBERS:
        return ()
    unit, code = TYPES[entry.kind]
    count = min(entry.count, limit)
    inline = entry.count * unit <= len(entry.field)
    data = entry.field if inline else _read_at(fd, count * unit, layout.number(entry.field))
    if len(data) < count * unit:
        raise Rejected("damaged-image")
    numbers = struct.unpack_from(layout.struct_order + code * count, data)
    if len(code) == 2:  # rationals
        return tuple(a / b if b else 0 for a, b in zip(numbers[::2], numbers[1::2], strict=True))
    return numbers
