"""What a rendition says about its picture: an EXIF block of our own, made of known tags of the source's."""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from service.renditions.transformation import Transformation
from worker.imaging.containers.tiff import Layout
from worker.imaging.exif import BIG_TIFF_TYPES, TYPES, Read, entries, first_directory, reader
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
_TYPES = TYPES.keys() - BIG_TIFF_TYPES  # the block is no BigTIFF

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
        exif = None if original.exif is None else _rewrite(reader(original.exif), asked)
    except (struct.error, ValueError):
        exif = None
    xmp = original.read_xmp() if asked.metadata == "keep" and asked.keep_location else None
    return Metadata(exif, _clean(xmp) if xmp else None)


class _Entry(NamedTuple):
    tag: int
    kind: int
    length: int
    data: bytes


def _rewrite(read: Read, asked: Transformation) -> bytes | None:
    """A block with known tags alone: no thumbnail, no notes of the maker. None where nothing is to be told."""
    start = first_directory(read)
    if start is None:
        return None
    layout, offset = start
    kept = _COPYRIGHT_TAGS if asked.metadata == "copyright" else _IMAGE_KEPT | _PHOTO_KEPT
    first, pointers = _directory(read, layout, offset, kept)
    inner: dict[int, _Entry] = {}
    if EXIF_IFD in pointers:
        inner, more = _directory(read, layout, pointers[EXIF_IFD], kept)
        pointers = more | pointers
    # Each tag goes into the directory that it belongs to, where it may have stood in the other one.
    own = [entry for tag, entry in (inner | first).items() if tag in _IMAGE_KEPT]
    photo = [entry for tag, entry in (first | inner).items() if tag in _PHOTO_KEPT]
    directories = {EXIF_IFD: photo} if photo else {}
    if asked.keep_location and asked.metadata == "keep" and GPS_IFD in pointers:
        places, _ = _directory(read, layout, pointers[GPS_IFD], frozenset(GPS_TAGS))
        if places:
            directories[GPS_IFD] = list(places.values())
    if not own and not directories:
        return None
    if asked.metadata == "keep":
        own.append(_Entry(ORIENTATION, 3, 1, struct.pack(layout.struct_order + "H", 1)))
    return _block(layout.struct_order, own, directories)


def _directory(
    read: Read, layout: Layout, offset: int, kept: frozenset[int]
) -> tuple[dict[int, _Entry], dict[int, int]]:
    """The entries of these tags, and the directory's pointers, by their tags."""
    values: dict[int, _Entry] = {}
    pointers: dict[int, int] = {}
    for tag, kind, count, field in entries(read, layout, offset):
        if tag in {EXIF_IFD, GPS_IFD}:
            pointers.setdefault(tag, layout.offset(kind, field))
        if tag not in kept or tag in values or kind not in _TYPES or count == 0:
            continue
        size = count * TYPES[kind][0]
        if size > _MAX_TAG_BYTES:
            continue
        data = field[:size] if size <= layout.word else read(layout.number(field), size)
        if len(data) == size:
            values[tag] = _Entry(tag, kind, count, data)
    return values, pointers


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
