"""GIF, and its animations."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator
from functools import partial

import pyvips

from service.probes import Rejected
from worker.imaging.formats.animations import open_frames, probe_frames
from worker.imaging.formats.fields import pages_of
from worker.imaging.formats.original import Frames, Original
from worker.imaging.formats.picture import Picture
from worker.imaging.formats.source import Source

_IMAGE, _EXTENSION = 0x2C, 0x21


def probe(source: Source) -> Picture:
    picture = probe_frames(source, _loader(source)(n=-1))
    _refuse_cut(source.fd)
    return picture


def open_original(source: Source, which: Frames) -> Original:
    load = _loader(source)
    image = load()
    if which.number is None and which.all:
        _refuse_cut(source.fd)
    return open_frames(source, image, load, which, pages=pages_of(image))


def _loader(source: Source) -> Callable[..., pyvips.Image]:
    return partial(pyvips.Image.gifload, source.path, fail_on="truncated", access="sequential")


def size_of(data: bytes) -> tuple[int, int]:
    """Raises struct.error where there is none."""
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height


def _refuse_cut(fd: int) -> None:
    """Refuse a GIF that ends inside a block. libvips shows an animation cut short as one with fewer frames.

    Only the end mark may be missing: no pixel is, and such files are about.
    """
    with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as data:
        try:
            for _ in blocks(data):
                pass
        except IndexError:
            raise Rejected("damaged-image") from None


def blocks(data: mmap.mmap | bytearray) -> Iterator[tuple[int, int]]:
    """Start and end of each image and extension, up to what is none. Raises IndexError where the file ends in one."""
    at = 13 + _colour_table_bytes(data[10])
    while at < len(data):
        start = at
        if data[at] == _IMAGE:
            at += 11 + _colour_table_bytes(data[at + 9])
        elif data[at] == _EXTENSION:
            at += 2
        else:
            return
        while size := data[at]:
            at += size + 1
        at += 1
        yield start, at


def _colour_table_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0
