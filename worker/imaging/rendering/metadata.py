"""Builds the metadata of a rendition: a new EXIF block with known tags of the original, and its XMP."""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from service.renditions.transformation import Transformation
from worker.file_headers import Read
from worker.imaging.containers.tiff import (
    BIG_TIFF_TYPES,
    SHORT,
    TYPES,
    Layout,
    Tag,
    read_directory,
    read_header,
    write_block,
)
from worker.imaging.exif import MAX_ENTRIES, exif_reader
from worker.imaging.exif_tags import EXIF_IFD, GPS_IFD, GPS_TAGS, IMAGE_TAGS, ORIENTATION, PHOTO_TAGS
from worker.imaging.formats.format import Original

# A JPEG segment has room for this. The tags of cameras have some hundred bytes.
_MAX_BLOCK_BYTES = 60_000
_MAX_TAG_BYTES = 16_384

_COPYRIGHT_TAGS = frozenset({0x013B, 0x8298})
# Tags about how the pixels of the original were stored.
_PIXEL_TAGS = frozenset({ORIENTATION, 0x013E, 0x013F, 0x0211, 0x0213, 0x0214, 0x9101, 0x9102, 0xA001, 0xA002, 0xA003})
_IMAGE_TAGS_TO_KEEP = frozenset(IMAGE_TAGS) - _PIXEL_TAGS
_PHOTO_TAGS_TO_KEEP = frozenset(PHOTO_TAGS) - _PIXEL_TAGS
_TYPES = TYPES.keys() - BIG_TIFF_TYPES  # the block is no BigTIFF

# Pictures inside XMP would show what a crop removed. The orientation has been applied.
_XMP_PICTURES = re.compile(rb"Thumbnails|xmpGImg|xapGImg|GDepth|GImage|HDRGainMap")
_XMP_ORIENTATION = re.compile(rb"""(tiff:Orientation(?:\s*=\s*["']|>)\s*)[1-8]""")


class Metadata(NamedTuple):
    """An EXIF block, from its byte order on, and an XMP packet."""

    exif: bytes | None
    xmp: bytes | None


def build_metadata(original: Original, transformation: Transformation) -> Metadata:
    if transformation.metadata == "none":
        return Metadata(None, None)
    try:
        exif = None if original.exif is None else _build_exif(exif_reader(original.exif), transformation)
    except (struct.error, ValueError):
        exif = None
    xmp = original.read_xmp() if transformation.metadata == "keep" and transformation.keep_location else None
    return Metadata(exif, _clean(xmp) if xmp else None)


def _build_exif(read: Read, transformation: Transformation) -> bytes | None:
    """Returns a block of known tags, without thumbnail and maker notes. None if there are no tags."""
    header = read_header(read)
    if header is None:
        return None
    layout, offset = header
    tags = _COPYRIGHT_TAGS if transformation.metadata == "copyright" else _IMAGE_TAGS_TO_KEEP | _PHOTO_TAGS_TO_KEEP
    first, pointers = _read_tags(read, layout, offset, tags)
    inner: dict[int, Tag] = {}
    if EXIF_IFD in pointers:
        inner, more = _read_tags(read, layout, pointers[EXIF_IFD], tags)
        pointers = more | pointers
    # Each tag goes into the directory that it belongs to. The original may have it in the other one.
    image = [value for tag, value in (inner | first).items() if tag in _IMAGE_TAGS_TO_KEEP]
    photo = [value for tag, value in (first | inner).items() if tag in _PHOTO_TAGS_TO_KEEP]
    directories = {EXIF_IFD: photo} if photo else {}
    if transformation.keep_location and transformation.metadata == "keep" and GPS_IFD in pointers:
        gps, _ = _read_tags(read, layout, pointers[GPS_IFD], frozenset(GPS_TAGS))
        if gps:
            directories[GPS_IFD] = list(gps.values())
    if not image and not directories:
        return None
    if transformation.metadata == "keep":
        image.append(Tag(ORIENTATION, SHORT, 1, struct.pack(layout.struct_order + "H", 1)))
    block = write_block(layout.order, image, directories)
    return block if len(block) <= _MAX_BLOCK_BYTES else None


def _read_tags(read: Read, layout: Layout, offset: int, tags: frozenset[int]) -> tuple[dict[int, Tag], dict[int, int]]:
    """Returns the values of these tags in a directory, and the directory's pointers, by their tags."""
    values: dict[int, Tag] = {}
    pointers: dict[int, int] = {}
    for entry in read_directory(read, layout, offset, max_entries=MAX_ENTRIES).entries:
        tag, size = entry.tag, entry.size
        if tag in {EXIF_IFD, GPS_IFD}:
            pointers.setdefault(tag, layout.pointer(entry))
        if tag not in tags or tag in values or entry.kind not in _TYPES or not 0 < size <= _MAX_TAG_BYTES:
            continue
        data = layout.read_value(read, entry, size)
        if len(data) == size:
            values[tag] = Tag(tag, entry.kind, entry.value_count, data)
    return values, pointers


def _clean(xmp: bytes) -> bytes | None:
    if len(xmp) > _MAX_BLOCK_BYTES or _XMP_PICTURES.search(xmp):
        return None
    return _XMP_ORIENTATION.sub(rb"\g<1>1", xmp)
