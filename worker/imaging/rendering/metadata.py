"""What a rendition says about its picture: an EXIF block of our own, made of known tags of the source's."""

from __future__ import annotations

import os
import re
import struct
from typing import NamedTuple

from service.delivery.transformations import Transformation
from worker.imaging.exif import TYPES, Read, entries, pointer
from worker.imaging.exif_tags import EXIF_IFD, GPS_IFD, GPS_TAGS, IMAGE_TAGS, ORIENTATION, PHOTO_TAGS
from worker.imaging.formats.original import Original

# A segment of a JPEG holds as much; a tag of a camera has some hundred bytes.
MAX_BLOCK_BYTES = 60_000
_MAX_TAG_BYTES = 16_384

_COPYRIGHT_TAGS = frozenset({0x013B, 0x8298})
# How the source's pixels were stored, which the rendition's are not.
_OF_THE_PIXELS = frozenset(
    {ORIENTATION, 0x013E, 0x013F, 0x0211, 0x0213, 0x0214, 0x9101, 0x9102, 0xA001, 0xA002, 0xA003}
)
_IMAGE_KEPT = frozenset(IMAGE_TAGS) - _OF_THE_PIXELS
_PHOTO_KEPT = frozenset(PHOTO_TAGS) - _OF_THE_PIXELS

# Pictures inside of XMP would show what was cut off; the orientation was applied.
_XMP_PICTURES = re.compile(rb"Thumbnails|xmpGImg|xapGImg|GDepth|GImage|HDRGainMap")
_XMP_ORIENTATION = re.compile(rb"""(tiff:Orientation(?:\s*=\s*["']|>)\s*)[1-8]""")


class Metadata(NamedTuple):
    """An EXIF block, from its byte order on, and an XMP packet."""

    exif: bytes | None
    xmp: bytes | None


def choose(original: Original, asked: Transformation) -> Metadata:
    if asked.metadata == "none":
        return Metadata(None, None)
    try:
        exif = _rewrite(_reader(original.exif), asked)
    except (struct.error, ValueError):
        exif = None
    xmp = original.read_xmp() if asked.metadata == "keep" and asked.keep_location else None
    return Metadata(exif, _clean(xmp) if xmp else None)


def _reader(exif: bytes | int | None) -> Read:
    if isinstance(exif, int):
        return lambda at, size: os.pread(exif, size, at)
    block = (exif or b"").removeprefix(b"Exif\0\0")
    return lambda at, size: block[at : at + size]


class _Entry(NamedTuple):
    tag: int
    kind: int
    length: int
    data: bytes


def _rewrite(read: Read, asked: Transformation) -> bytes | None:
    """A block with known tags alone: no thumbnail, no notes of the maker. None where nothing is to be told."""
    head = read(0, 8)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(head[:4])
    if order is None or len(head) < 8:
        return None
    start = pointer(order, head[4:])
    if asked.metadata == "copyright":
        own, _ = _directory(read, order, start, _COPYRIGHT_TAGS)
        return _block(order, own, {}) if own else None
    own, pointers = _directory(read, order, start, _IMAGE_KEPT)
    inner = {}
    wanted = [(EXIF_IFD, _PHOTO_KEPT)]
    if asked.keep_location:
        wanted.append((GPS_IFD, frozenset(GPS_TAGS)))
    for tag, kept in wanted:
        if tag in pointers:
            found, _ = _directory(read, order, pointers[tag], kept)
            if found:
                inner[tag] = found
    if not own and not inner:
        return None
    own.append(_Entry(ORIENTATION, 3, 1, struct.pack(order + "H", 1)))
    return _block(order, own, inner)


def _directory(read: Read, order: str, offset: int, kept: frozenset[int]) -> tuple[list[_Entry], dict[int, int]]:
    found: dict[int, _Entry] = {}
    pointers: dict[int, int] = {}
    for tag, kind, count, field in entries(read, order, offset):
        if tag in {EXIF_IFD, GPS_IFD}:
            pointers.setdefault(tag, pointer(order, field))
        if tag not in kept or tag in found or kind not in TYPES or count == 0:
            continue
        size = count * TYPES[kind][0]
        if size > _MAX_TAG_BYTES:
            continue
        data = field[:size] if size <= 4 else read(pointer(order, field), size)
        if len(data) == size:
            found[tag] = _Entry(tag, kind, count, data)
    return list(found.values()), pointers


def _block(order: str, own: list[_Entry], inner: dict[int, list[_Entry]]) -> bytes | None:
    own = sorted([*own, *(_Entry(tag, 4, 1, bytes(4)) for tag in inner)])
    starts, at = {}, 8 + _directory_bytes(own)
    for tag, found in inner.items():
        starts[tag] = at
        at += _directory_bytes(found)
    if at > MAX_BLOCK_BYTES:
        return None
    own = [
        entry._replace(data=struct.pack(order + "I", starts[entry.tag])) if entry.tag in starts else entry
        for entry in own
    ]
    head = struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, 8)
    rest = [_pack(order, sorted(found), starts[tag]) for tag, found in inner.items()]
    return b"".join([head, _pack(order, own, 8), *rest])


def _directory_bytes(found: list[_Entry]) -> int:
    return 2 + 12 * len(found) + 4 + sum(_padded(len(entry.data)) for entry in found if len(entry.data) > 4)


def _padded(size: int) -> int:
    return size + size % 2


def _pack(order: str, found: list[_Entry], start: int) -> bytes:
    outside_at = start + 2 + 12 * len(found) + 4
    table, outside = struct.pack(order + "H", len(found)), b""
    for tag, kind, count, data in found:
        if len(data) <= 4:
            field = data.ljust(4, b"\0")
        else:
            field = struct.pack(order + "I", outside_at + len(outside))
            outside += data.ljust(_padded(len(data)), b"\0")
        table += struct.pack(order + "HHI", tag, kind, count) + field
    return table + bytes(4) + outside


def _clean(xmp: bytes) -> bytes | None:
    if len(xmp) > MAX_BLOCK_BYTES or _XMP_PICTURES.search(xmp):
        return None
    return _XMP_ORIENTATION.sub(rb"\g<1>1", xmp)
