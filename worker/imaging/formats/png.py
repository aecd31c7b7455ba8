"""PNG. The frames of an APNG are counted, and its default image is shown.

EXIF may be in a chunk `eXIf` anywhere between IHDR and IEND (PNG, third edition, 11.3.4.6; ImageMagick writes it after
the pixels, where libpng does not read it), or a text of hexadecimal digits.
"""

from __future__ import annotations

import os
import zlib
from functools import partial

import pyvips

from service.images.probe import Rejected
from worker.file_headers import png_size
from worker.imaging.containers.png import (
    MAX_TEXT_BYTES,
    PROFILE_KEYWORD,
    TEXT_CHUNKS,
    Text,
    chunks,
    decode_profile,
    parse_text,
)
from worker.imaging.exif import is_exif
from worker.imaging.formats.format import (
    DecodedPicture,
    Format,
    FrameSelection,
    Original,
    decode_picture,
    original_from,
)
from worker.imaging.formats.png_colours import read_png_profile
from worker.imaging.formats.source import Source
from worker.imaging.location_removal.png import blank_png
from worker.imaging.vips import replace_profile

# Bytes up to the end of width and height in IHDR, the first chunk.
_SIZE_BYTES = 24
# The bit of a chunk's type that means that decoders may ignore it (5.4).
_ANCILLARY = 0x20
_READ_BYTES = 1 << 20
# EXIF, or what a JPEG's segment APP1 contains: EXIF or XMP.
_EXIF_KEYWORDS = frozenset({PROFILE_KEYWORD + b"exif", PROFILE_KEYWORD + b"APP1"})
# Texts that are decoded to find EXIF, in one file.
_MAX_PROFILES = 4


def probe(source: Source) -> DecodedPicture:
    image = _load(source)
    pages = _count_frames(source.fd)
    source.check_size(image.width, image.height, pages)
    return decode_picture(image, image.width, image.height, pages=pages, exif=_find_exif(source.fd))


def open_original(source: Source, _: FrameSelection) -> Original:
    return original_from(_load(source), exif=_find_exif(source.fd))


def _load(source: Source) -> pyvips.Image:
    source.check_size(*size_of(os.pread(source.fd, _SIZE_BYTES, 0)))
    image = source.load(pyvips.Image.pngload_source, fail_on="truncated", access="sequential")
    source.check_size(image.width, image.height)
    read = partial(os.pread, source.fd)
    return replace_profile(image, read_png_profile(chunks(read), read))


def size_of(head: bytes) -> tuple[int, int]:
    """Returns width and height, also those over a million, which libpng refuses. Raises Rejected if there are none."""
    if head[12:16] == b"CgBI":
        raise Rejected("unsupported-image", "PNG optimised for iOS (CgBI)")
    if len(head) < _SIZE_BYTES or head[12:16] != b"IHDR":
        raise Rejected("damaged-image")
    return png_size(head)


def _count_frames(fd: int) -> int:
    """Returns the number of pictures in an APNG with its default image, and 1 for any other PNG.

    Raises Rejected if the file ends before IEND or a critical chunk is damaged: decoders stop after the last line of
    pixels, and do not detect it.
    """
    declared, controls, first = 0, 0, b""
    for kind, at, end in chunks(partial(os.pread, fd)):
        if not kind[0] & _ANCILLARY and not _has_checksum(fd, at, end):
            raise Rejected("damaged-image")
        if kind == b"IEND":
            # An animation that contradicts itself counts as its default image.
            return controls + (first == b"IDAT") if declared and declared == controls else 1
        if kind in {b"IDAT", b"fcTL"}:
            first = first or kind
        if kind == b"acTL":
            declared = int.from_bytes(os.pread(fd, 4, at + 8), "big")
        elif kind == b"fcTL":
            controls += 1
    raise Rejected("damaged-image")


def _has_checksum(fd: int, start: int, end: int) -> bool:
    """Returns whether the CRC of a chunk is right. libvips does not check it."""
    checksum = 0
    for at in range(start + 4, end - 4, _READ_BYTES):
        checksum = zlib.crc32(os.pread(fd, min(_READ_BYTES, end - 4 - at), at), checksum)
    return os.pread(fd, 4, end - 4) == checksum.to_bytes(4)


def _find_exif(fd: int) -> bytes | None:
    """Returns the EXIF block: of the first valid `eXIf`, or else of the first text that has one."""
    profile: bytes | None = None
    profiles_left = _MAX_PROFILES
    for kind, start, end in chunks(partial(os.pread, fd)):
        if kind == b"IEND":
            break
        if kind == b"eXIf":
            block = _read_contents(fd, start, end)
            if is_exif(block):
                return block
        elif kind in TEXT_CHUNKS and profile is None and profiles_left:
            text = parse_text(kind, _read_contents(fd, start, end))
            if text is not None and text.keyword in _EXIF_KEYWORDS:
                profiles_left -= 1
                profile = _decode_exif(text)
    return profile


def _read_contents(fd: int, start: int, end: int) -> bytes:
    """Returns the contents, or nothing if the chunk is truncated or larger than any text."""
    size = end - start - 12
    contents = os.pread(fd, size, start + 8) if size <= MAX_TEXT_BYTES else b""
    return contents if len(contents) == size else b""


def _decode_exif(text: Text) -> bytes | None:
    try:
        block = decode_profile(text.decompress())
    except (ValueError, zlib.error):
        return None
    return block if is_exif(block) else None


FORMAT = Format("png", ("PngSource", "PngBuffer"), probe, open_original, blank_png)
