"""Places in a PNG: its EXIF, and texts that are XMP, or EXIF and IPTC in hexadecimal digits."""

from __future__ import annotations

import re
import zlib
from contextlib import suppress

from worker.imaging.formats import png
from worker.imaging.locations.blocks import blank_exif, tells_place
from worker.imaging.locations.regions import Copy, Region, Unreadable
from worker.imaging.locations.xmp import blank_xmp, names_place

_XMP_KEYWORD = b"XML:com.adobe.xmp"
# ImageMagick's: a name, the number of bytes, and their digits in lines. Possessive, or spaces would keep us busy.
_PROFILE_KEYWORD = b"Raw profile type "
_PROFILE = re.compile(rb"\s*+\S++\s++\d++\s([0-9a-fA-F\s]*+)\0*+\Z")
_MOST_TEXT_BYTES = 4_000_000


def blank_png(copy: Copy) -> None:
    for kind, start, end in png.chunks(copy.read):
        if kind == b"IEND" or end > copy.size:
            return
        if kind not in {b"eXIf", b"tEXt", b"zTXt", b"iTXt"}:
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
    keyword, ends, rest = body.read(0, body.size).partition(b"\0")
    if not ends:
        return
    packed = kind == b"zTXt"
    text_at = len(keyword) + 1 + packed
    text = rest[packed:]
    if kind == b"iTXt":  # whether it is packed, how, its language, the keyword in that
        flags, (_, *texts) = rest[:2], rest[2:].split(b"\0", 2)
        if len(texts) < 2:
            return
        packed, text = flags[:1] == b"\1", texts[1]
        text_at = body.size - len(text)
    if keyword == _XMP_KEYWORD and not packed:
        blank_xmp(body.part(text_at, body.size))
    elif _tells_place(copy, keyword, text, packed=packed):
        # A text that says nothing, and that any reader takes for one.
        copy.write(start + 4, b"tEXt")
        body.put(0, (b"Comment"[: body.size - 1] + b"\0").ljust(body.size))


def _tells_place(copy: Copy, keyword: bytes, text: bytes, *, packed: bool) -> bool:
    """A profile that cannot be looked into counts as one that does."""
    if names_place(b":" + keyword):
        return True
    if not keyword.startswith((_PROFILE_KEYWORD, _XMP_KEYWORD)):
        return False
    try:
        if packed:
            text = _unpacked(copy, text)
        return names_place(text) if keyword == _XMP_KEYWORD else tells_place(_profile(text))
    except (ValueError, zlib.error):
        return True


def _unpacked(copy: Copy, text: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    text = unpacker.decompress(text, _MOST_TEXT_BYTES)
    copy.spend(len(text))
    if unpacker.unconsumed_tail:
        raise ValueError("a text longer than any profile")
    return text


def _profile(text: bytes) -> bytes:
    written = _PROFILE.match(text)
    if written is None:
        raise ValueError("no digits")
    return bytes.fromhex(written[1].decode())
