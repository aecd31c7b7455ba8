"""TIFF and BigTIFF, of one page or several."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pyvips

from service.images.probe import MAX_PAGES, Rejected
from worker.file_headers import Read, file_reader
from worker.imaging.containers.tiff import HEAD_BYTES, SHORT, TYPES, Entry, Layout, read_header, walk_directories
from worker.imaging.containers.tiff_contents import Truncated, read_contents
from worker.imaging.exif import read_exif
from worker.imaging.exif_tags import ORIENTATION
from worker.imaging.formats.animations import probe_frames
from worker.imaging.formats.format import (
    DecodedPicture,
    Format,
    FrameSelection,
    Original,
    decode_picture,
    original_from,
)
from worker.imaging.formats.source import Source
from worker.imaging.formats.tiff_pixels import (
    PHOTOMETRIC,
    Samples,
    as_integers,
    full_scale,
    needs_full_scale,
    read_samples,
)
from worker.imaging.location_removal.blocks import blank_tiff
from worker.imaging.small_copy import make_small_copy
from worker.imaging.unsupported import name_tiff
from worker.imaging.vips import count_pages

# Pages of different sizes are opened one by one, and libtiff walks to each from the first page: 100 take 0.16 s, 1,000
# take 14.
_MAX_UNEQUAL_PAGES = 100

# The maximum width and height. libvips has some lines in memory, which took 4 GB for lines of 16 million pixels. Other
# formats have shorter sides.
_MAX_SIDE = 1_000_000

# The types of an orientation (BYTE, SHORT and LONG), and their bytes.
_INTEGERS = {1: 1, 3: 2, 4: 4}
# Types of numbers.
_NUMBERS = frozenset(kind for kind, (_, code) in TYPES.items() if code != "s")


def probe(source: Source) -> DecodedPicture:
    """Decodes every page, because a truncated one does not affect the others.

    libtiff reports a strip that ends too early as an error, not as a truncation.
    """
    _reject_truncated(source)
    return replace(_probe_pages(source), exif=read_exif(source.fd))


def open_original(source: Source, selection: FrameSelection) -> Original:
    load = _loader(source)
    image = load()
    pages = count_pages(image)
    if selection.number is not None and pages > 1:
        image = load(page=min(selection.number, pages) - 1)
    source.check_size(image.width, image.height)
    return original_from(image, exif=source.fd)


def _loader(source: Source) -> Callable[..., pyvips.Image]:
    """Returns a function that loads a page, or `n` pages, in 8 or 16 bits. Raises Rejected for an unsupported kind.

    If libtiff would misread an entry, it gets a corrected copy of the file.
    """
    options = {"fail_on": "error", "access": "sequential"}
    pages, corrections = _read_pages(source.fd)
    if not corrections:
        load_stored = partial(source.load, pyvips.Image.tiffload_source, **options)
    else:
        data = bytearray(source.read_all())
        for at, entry in corrections:
            data[at : at + len(entry)] = entry
        load_stored = partial(pyvips.Image.tiffload_buffer, bytes(data), **options)

    def load(page: int = 0, n: int = 1) -> pyvips.Image:
        samples = pages[min(page, len(pages) - 1)]
        image, white = load_stored(page=page, n=n), None
        if max(image.width, image.get_page_height()) > _MAX_SIDE:
            raise Rejected("too-many-pixels")
        if needs_full_scale(samples):
            first = load_stored(page=page)
            source.check_size(first.width, first.height)
            white = full_scale(first)
        return as_integers(image, samples, white=white)

    return load


def _probe_pages(source: Source) -> DecodedPicture:
    load = _loader(source)
    image = load()
    pages = count_pages(image)
    source.check_size(image.width, image.height, pages)
    if pages == 1:
        return decode_picture(image, image.width, image.height)
    try:
        tall = load(n=-1)
    except pyvips.Error:
        return _probe_unequal_pages(source, load, image, pages)
    return probe_frames(source, tall, checked_pixels=source.max_pixels)


def _probe_unequal_pages(
    source: Source, load: Callable[..., pyvips.Image], first: pyvips.Image, pages: int
) -> DecodedPicture:
    if pages > _MAX_UNEQUAL_PAGES:
        raise Rejected("too-many-pixels")
    picture = decode_picture(first, first.width, first.height, pages=pages)
    pixels = first.width * first.height
    for page in range(1, pages):
        image = load(page=page)
        pixels += image.width * image.height
        source.check_size(pixels, 1)
        make_small_copy(image, None)
    return picture


def _reject_truncated(source: Source) -> None:
    """Raises Rejected for a file that is incomplete, has too many pages, or is of a kind that libtiff does not decode.

    libtiff shows the pages before a truncated directory, and never reads the directories inside pages.
    """
    try:
        size = os.fstat(source.fd).st_size
        contents = read_contents(file_reader(source.fd), size, max_pages=MAX_PAGES)
    except Truncated:
        raise Rejected("damaged-image") from None
    if kind := name_tiff(os.pread(source.fd, HEAD_BYTES, 0), contents):
        raise Rejected("unsupported-image", kind)
    source.check_size(1, 1, contents.pages)


def _read_pages(fd: int) -> tuple[list[Samples], list[tuple[int, bytes]]]:
    """Returns the samples of each page, and corrections: offsets and bytes of entries that replace others.

    They correct invalid orientations, which libtiff reports as an error, and kinds of pixels that it misreads.
    """
    read = file_reader(fd)
    header = read_header(read)
    if header is None:
        raise Rejected("damaged-image")
    layout, first = header
    pages: list[Samples] = []
    corrections: list[tuple[int, bytes]] = []
    for directory in walk_directories(read, layout, first):
        by_tag = {entry.tag: entry for entry in reversed(directory.entries)}
        samples = read_samples(partial(_read_numbers, read, layout, by_tag))
        pages.append(samples)
        for index, entry in enumerate(directory.entries):
            at = directory.start + index * layout.entry_bytes
            if entry.tag == ORIENTATION:
                if not 1 <= layout.number(entry.field[: _INTEGERS.get(entry.kind, 0)]) <= 8:
                    corrections.append((at, _pack_short(layout, ORIENTATION, 1)))
            elif entry.tag == PHOTOMETRIC and samples.decoded_photometric != samples.photometric:
                corrections.append((at, _pack_short(layout, PHOTOMETRIC, samples.decoded_photometric)))
    if not pages:
        raise Rejected("damaged-image")
    return pages, corrections


def _pack_short(layout: Layout, tag: int, value: int) -> bytes:
    return layout.pack(Entry(tag, SHORT, 1, value.to_bytes(2, layout.order)))


def _read_numbers(read: Read, layout: Layout, by_tag: dict[int, Entry], tag: int, limit: int) -> tuple[float, ...]:
    """Returns the first values of a tag, at most `limit`; () if it is missing or has no numbers.

    Raises Rejected if the file ends before them.
    """
    entry = by_tag.get(tag)
    if entry is None or entry.kind not in _NUMBERS:
        return ()
    unit, code = TYPES[entry.kind]
    count = min(entry.value_count, limit)
    data = layout.read_value(read, entry, count * unit)
    if len(data) < count * unit:
        raise Rejected("damaged-image")
    numbers = struct.unpack_from(layout.struct_order + code * count, data)
    if len(code) == 2:  # rationals
        return tuple(a / b if b else 0 for a, b in zip(numbers[::2], numbers[1::2], strict=True))
    return numbers


FORMAT = Format("tiff", ("TiffSource", "TiffBuffer"), probe, open_original, blank_tiff)
