"""PNG, with the frames of an APNG counted, and its first picture shown."""

from __future__ import annotations

import os
import struct
from functools import partial
from zlib import crc32

import pyvips

from service.images.probe import Rejected
from worker.imaging.containers.png import chunks
from worker.imaging.formats.fields import with_profile
from worker.imaging.formats.original import Frames, Original, original_of
from worker.imaging.formats.picture import Picture, picture_of
from worker.imaging.formats.png_colours import read_png_profile
from worker.imaging.formats.png_exif import find_exif
from worker.imaging.formats.source import Source

# Of width and height in IHDR, the first chunk.
_SIZE_END = 24
# The bit of a chunk's type that says that the picture can be shown without it.
_ANCILLARY = 0x20
_READ_BYTES = 1 << 20


def probe(source: Source) -> Picture:
    image = _load(source)
    pages = _count_frames(source.fd)
    source.admit(image.width, image.height, pages)
    return picture_of(image, image.width, image.height, pages=pages, exif=_find_exif(source.fd))


def open_original(source: Source, _: Frames) -> Original:
    return original_of(_load(source), exif=_find_exif(source.fd))


def _find_exif(fd: int) -> bytes | None:
    return find_exif(fd, chunks(partial(os.pread, fd)))


def _load(source: Source) -> pyvips.Image:
    source.admit(*size_of(os.pread(source.fd, _SIZE_END, 0)))
    image = source.decode(pyvips.Image.pngload_source, fail_on="truncated", access="sequential")
    source.admit(image.width, image.height)
    read = partial(os.pread, source.fd)
    return with_profile(image, read_png_profile(chunks(read), read))


def size_of(head: bytes) -> tuple[int, int]:
    """Width and height; libpng refuses to tell those over a million. Raises Rejected where they are not there."""
    if head[12:16] == b"CgBI":
        raise Rejected("unsupported-image", "PNG optimised for iOS (CgBI)")
    if len(head) < _SIZE_END or head[12:16] != b"IHDR":
        raise Rejected("damaged-image")
    width, height = struct.unpack_from(">II", head, 16)
    return width, height


def _count_frames(fd: int) -> int:
    """Pictures in an APNG, its default image among them; 1 in any other PNG. Refuses a file that ends before IEND does.

    A decoder stops after the last line of pixels, so nobody else notices a missing end.
    """
    declared, controls, first = 0, 0, b""
    for kind, at, end in chunks(partial(os.pread, fd)):
        if not kind[0] & _ANCILLARY and not _has_checksum(fd, at, end):
            raise Rejected("damaged-image")
        if kind == b"IEND":
            # An animation that contradicts itself is shown as its default image.
            return controls + (first == b"IDAT") if declared and declared == controls else 1
        if kind in {b"IDAT", b"fcTL"}:
            first = first or kind
        if kind == b"acTL":
            declared = int.from_bytes(os.pread(fd, 4, at + 8), "big")
        elif kind == b"fcTL":
            controls += 1
    raise Rejected("damaged-image")


def _has_checksum(fd: int, start: int, end: int) -> bool:
    """Whether the CRC of a chunk fits, which libvips does not look at."""
    checksum = 0
    for at in range(start + 4, end - 4, _READ_BYTES):
        checksum = crc32(os.pread(fd, min(_READ_BYTES, end - 4 - at), at), checksum)
    return os.pread(fd, 4, end - 4) == checksum.to_bytes(4)
