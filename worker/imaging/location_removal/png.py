"""Locations in a PNG: EXIF, and texts that are XMP, or EXIF and IPTC in hexadecimal digits."""

from __future__ import annotations

import zlib
from contextlib import suppress

from worker.imaging.containers.png import (
    PROFILE_KEYWORD,
    TEXT_CHUNKS,
    XMP_KEYWORD,
    Text,
    chunks,
    decode_profile,
    parse_text,
)
from worker.imaging.location_removal.blocks import blank_exif, contains_location
from worker.imaging.location_removal.regions import Copy, Region, Unreadable
from worker.imaging.location_removal.xmp import blank_xmp, names_location


def blank_png(copy: Copy) -> None:
    for kind, start, end in chunks(copy.read):
        if kind == b"IEND" or end > copy.size:
            return
        if kind != b"eXIf" and kind not in TEXT_CHUNKS:
            continue
        changes = copy.changes
        with suppress(Unreadable):
            copy.step()
            contents = copy.region((start + 8, end - 4))
            if kind == b"eXIf":
                blank_exif(contents)
            else:
                _blank_text(copy, kind, start, contents)
        if copy.changes > changes:
            copy.write(end - 4, zlib.crc32(copy.data[start + 4 : end - 4]).to_bytes(4))


def _blank_text(copy: Copy, kind: bytes, start: int, contents: Region) -> None:
    text = parse_text(kind, contents.read_all())
    if text is None:
        return
    if text.keyword == XMP_KEYWORD and not text.is_compressed:
        blank_xmp(contents.part(text.start, contents.size))
    elif _contains_location(copy, text):
        # It becomes an empty comment, which every reader accepts.
        copy.write(start + 4, b"tEXt")
        contents.write((b"Comment"[: contents.size - 1] + b"\0").ljust(contents.size), 0)


def _contains_location(copy: Copy, text: Text) -> bool:
    """Returns whether a text contains a location, or is a profile that cannot be read."""
    if names_location(b":" + text.keyword):
        return True
    if not text.keyword.startswith((PROFILE_KEYWORD, XMP_KEYWORD)):
        return False
    try:
        data = text.decompress()
        if text.is_compressed:
            copy.spend(len(data))
        return names_location(data) if text.keyword == XMP_KEYWORD else contains_location(decode_profile(data))
    except (ValueError, zlib.error):
        return True
