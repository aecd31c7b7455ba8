"""Where the EXIF of a PNG is.

ImageMagick and ExifTool write a block as a text of hexadecimal digits, because PNG had no chunk for EXIF before 2017.
The chunk `eXIf` may stand anywhere between IHDR and IEND (PNG, third edition, 11.3.4.6; ImageMagick writes it behind
the pixels), but libpng gives what stands in front of the pixels alone.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterable

from worker.imaging.containers.png import MAX_TEXT_BYTES, TEXT_CHUNKS, Text, parse_text
from worker.imaging.exif import is_exif

PROFILE_KEYWORD = b"Raw profile type "
# APP1 is what a JPEG's segment of the name holds: EXIF, or XMP.
_EXIF_KEYWORDS = frozenset({PROFILE_KEYWORD + b"exif", PROFILE_KEYWORD + b"APP1"})
# A line with the profile's name, the number of its bytes, and their digits in lines. Possessive, or spaces would keep
# us busy.
_PROFILE = re.compile(rb"\s*+(?:[^\n]++\n\s*+|\S++\s++)\d++\s([0-9a-fA-F\s]*+)\0*+\Z")
# Profiles of EXIF that are tried in one file.
_MAX_PROFILES = 4


def decode_profile(text: bytes) -> bytes:
    """The block that a text of digits holds. Raises ValueError."""
    match = _PROFILE.match(text)
    if match is None:
        raise ValueError("no digits")
    return bytes.fromhex(match[1].decode())


def find_exif(fd: int, chunks: Iterable[tuple[bytes, int, int]]) -> bytes | None:
    """The EXIF block of a PNG with these chunks (kind, start and end): of the first `eXIf` that is one, else of the
    first text.
    """
    profile: bytes | None = None
    profiles_left = _MAX_PROFILES
    for kind, start, end in chunks:
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
    """Nothing of a chunk that is cut off, or larger than any text."""
    size = end - start - 12
    contents = os.pread(fd, size, start + 8) if size <= MAX_TEXT_BYTES else b""
    return contents if len(contents) == size else b""


def _decode_exif(text: Text) -> bytes | None:
    try:
        block = decode_profile(text.unpack())
    except (ValueError, zlib.error):
        return None
    return block if is_exif(block) else None
