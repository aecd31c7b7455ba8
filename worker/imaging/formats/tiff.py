"""TIFF and BigTIFF, of one page or several."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import pyvips

from service.probes import Rejected
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
from worker.imaging.pixels import reduce

# Pages of a TIFF that are not all of one size have to be opened one by one, each by walking there from the first:
# 100 take 0.16 s, 1,000 take 14.
MAX_UNEQUAL_PAGES = 100

# Of all pages of a TIFF together, with 15 or so each; directories may lie on each other. 0.2 s.
MOST_ENTRIES = 300_000

# Types that an orientation has: bytes of a BYTE, a SHORT and a LONG.
_INTEGERS = {1: 1, 3: 2, 4: 4}
# Types of values that are numbers.
_NUMBERS = frozenset(kind for kind, (_, code) in TYPES.items() if code != "s")

Order = Literal["little", "big"]


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
    """Answers with a page, or with `n` of them, in 8 or 16 bits. Raises Rejected for a kind that is not supported.

    libtiff is shown a copy of the file where it would misread an entry.
    """
    options = {"fail_on": "error", "access": "sequential"}
    pages, corrections = _read_pages(source.fd)
    if not corrections:
        decode = partial(pyvips.Image.tiffload, source.path, **options)
    else:
        data = bytearray(Path(source.path).read_bytes())
        for at, entry in corrections:
            data[at : at + len(entry)] = entry
        decode = partial(pyvips.Image.tiffload_buffer, bytes(data), **options)

    def load(page: int = 0, n: int = 1) -> pyvips.Image:
        samples = pages[min(page, len(pages) - 1)]
        image, full = decode(page=page, n=n), None
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


@dataclass(frozen=True, slots=True)
class Layout:
    """Bytes of the count of a directory, and of an offset; an entry, of tag, type, number of values, and what they are
    or where.
    """

    order: Order
    count: int
    word: int
    packed: struct.Struct

    @property
    def entry(self) -> int:
        return self.packed.size

    def number(self, word: bytes) -> int:
        return int.from_bytes(word, self.order)

    def first(self, head: bytes) -> int:
        """Where the first directory is, by the first 16 bytes."""
        return self.number(head[self.word : 2 * self.word])


# By the first bytes of a file; those with a + are BigTIFF.
LAYOUTS = {
    b"II*\0": Layout("little", 2, 4, struct.Struct("<HHI4s")),
    b"MM\0*": Layout("big", 2, 4, struct.Struct(">HHI4s")),
    b"II+\0": Layout("little", 8, 8, struct.Struct("<HHQ8s")),
    b"MM\0+": Layout("big", 8, 8, struct.Struct(">HHQ8s")),
}


@dataclass(frozen=True, slots=True)
class _Entry:
    """`at` is where the entry lies, `field` the value, or where that lies."""

    at: int
    tag: int
    kind: int
    count: int
    field: bytes


def _read_pages(fd: int) -> tuple[list[Samples], list[tuple[int, bytes]]]:
    """What the samples of each page are, and entries to put in the place of others: where, and the bytes.

    Those are of orientations that are none, which libtiff reports as an error, and of pixels that it misreads.
    """
    layout = LAYOUTS[os.pread(fd, 4, 0)]
    pages: list[Samples] = []
    corrections: list[tuple[int, bytes]] = []
    for entries in _directories(fd, layout):
        by_tag = {entry.tag: entry for entry in reversed(entries)}
        samples = read_samples(partial(_values, fd, layout, by_tag))
        pages.append(samples)
        for entry in entries:
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


def _values(fd: int, layout: Layout, by_tag: dict[int, _Entry], tag: int, limit: int) -> tuple[float, ...]:
    """The first values of a tag, up to `limit` of them; () if it is missing or not of numbers. Raises Rejected if they
    lie beyond the end of the file.
    """
    entry = by_tag.get(tag)
    if entry is None or entry.kind not in _NUMBERS:
        return ()
    unit, code = TYPES[entry.kind]
    count = min(entry.count, limit)
    inline = entry.count * unit <= len(entry.field)
    data = entry.field if inline else os.pread(fd, count * unit, layout.number(entry.field))
    if len(data) < count * unit:
        raise Rejected("damaged-image")
    order = "<" if layout.order == "little" else ">"
    numbers = struct.unpack_from(order + code * count, data)
    if len(code) == 2:  # rationals
        return tuple(a / b if b else 0 for a, b in zip(numbers[::2], numbers[1::2], strict=True))
    return numbers


def _directories(fd: int, layout: Layout) -> Iterator[list[_Entry]]:
    """The entries of each page, up to one that was seen before or MOST_ENTRIES."""
    stored = os.fstat(fd).st_size
    seen: set[int] = set()
    left = MOST_ENTRIES
    at = layout.first(os.pread(fd, 16, 0))
    while left > 0 and 0 < at < stored and at not in seen:
        seen.add(at)
        count = os.pread(fd, layout.count, at)
        if len(count) < layout.count:
            return
        entries = layout.number(count)
        left -= max(entries, 1)
        if left < 0:
            return
        start, size = at + layout.count, entries * layout.entry
        table = os.pread(fd, size + layout.word, start)
        if len(table) < size + layout.word:
            return
        places = range(start, start + size, layout.entry)
        fields = layout.packed.iter_unpack(table[:size])
        yield [_Entry(place, *values) for place, values in zip(places, fields, strict=True)]
        at = layout.number(table[size:])
