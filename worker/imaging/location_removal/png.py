"""Places in a PNG: its EXIF, and texts that are XMP, or EXIF and IPTC in hexadecimal digits."""

from __future__ import annotations

import zlib
from contextlib import suppress

from worker.imaging.containers.png import TEXT_CHUNKS, Text, chunks, parse_text
from worker.imaging.formats.png_exif import PROFILE_KEYWORD, decode_profile
from worker.imaging.location_removal.blocks import blank_exif, tells_place
from worker.imaging.location_removal.regions import Copy, Region, Unreadable
from worker.imaging.location_removal.xmp import blank_xmp, names_place

_XMP_KEYWORD = b"XML:com.adobe.xmp"


def blank_png(copy: Copy) -> None:
    for kind, start, end in chunks(copy.read):
        if kind == b"IEND" or end > copy.size:
            return
        if kind != b"eXIf" and kind not in TEXT_CHUNKS:
            continue
        before = copy.changed
        with suppress(Unreadable):
            copy.step()
            body = copy.region((start + 8, end - 4))
            if kind == b"eXIf":
                blank_exif(body)
            else:
                _blank_text(copy, kind, start, body)
        if copy.changed > before:
            copy.write(end - 4, zlib.crc32(copy.data[start + 4 : end - 4]).to_bytes(4))


def _blank_text(copy: Copy, kind: bytes, start: int, body: Region) -> None:
    text = parse_text(kind, body.read(0, body.size))
    if text is None:
        return
    if text.keyword == _XMP_KEYWORD and not text.packed:
        blank_xmp(body.part(text.start, body.size))
    elif _tells_place(copy, text):
        # A text that says nothing, and that any reader takes for one.
        copy.write(start + 4, b"tEXt")
        body.put(0, (b"Comment"[: body.size - 1] + b"\0").ljust(body.size))


def _tells_place(copy: Copy, text: Text) -> bool:
    """A profile that cannot be looked into counts as one that does."""
    if names_place(b":" + text.keyword):
        return True
    if not text.keyword.startswith((PROFILE_KEYWORD, _XMP_KEYWORD)):
        return False
    try:
        data = text.unpack()
        if text.packed:
            copy.spend(len(data))
        return names_place(data) if text.keyword == _XMP_KEYWORD else tells_place(decode_profile(data))
    except (ValueError, zlib.error):
        return True
