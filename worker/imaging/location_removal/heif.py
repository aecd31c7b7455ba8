"""Locations in a HEIF file, AVIF or HEIC: items of EXIF and XMP (ISO/IEC 23008-12, annex A), and a box of XMP."""

from __future__ import annotations

from contextlib import suppress

from worker.imaging.containers.isobmff import Box, Item, Malformed, iterate_boxes, locate_items, open_meta, read_items
from worker.imaging.location_removal.blocks import blank_exif
from worker.imaging.location_removal.regions import Copy, Unreadable
from worker.imaging.location_removal.xmp import blank_xmp, empty_xmp

_XMP_UUID = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")


def blank_heif(copy: Copy) -> None:
    with suppress(Malformed):
        for box in iterate_boxes(copy.read, 0, copy.size):
            copy.step()
            with suppress(Unreadable):
                if box.kind == b"meta":
                    _blank_meta(copy, box)
                elif box.kind == b"uuid" and copy.read(16, box.start) == _XMP_UUID:
                    blank_xmp(copy.region((box.start + 16, box.end)))


def _blank_meta(copy: Copy, box: Box) -> None:
    """Blanks the items up to the first contradiction of the box, or all of them."""
    copy.spend(min(box.end, copy.size) - box.start)
    items: dict[int, Item] = {}
    with suppress(Malformed):
        meta = open_meta(copy.read, box, copy.size)
        with suppress(Malformed):
            read_items(meta, items)
        locate_items(meta, items, copy.size)
    copy.step(len(items))
    for item in items.values():
        with suppress(Unreadable):
            copy.step(len(item.extents))
            _blank_item(copy, item)


def _blank_item(copy: Copy, item: Item) -> None:
    """Raises Unreadable for an item that is larger than the file."""
    if item.kind not in {b"Exif", b"mime"}:
        return
    contents = copy.region(*item.extents)
    if contents.size > copy.size:
        raise Unreadable
    if item.kind == b"Exif":
        # The first four bytes are the number of bytes before the TIFF structure (ISO/IEC 23008-12, A.2.1).
        blank_exif(contents.part(4 + contents.number(4, 0), contents.size))
        return
    _, content_type, encoding, *_ = (*item.text[:1000].split(b"\0"), b"", b"")
    if b"xml" not in content_type.lower():
        return
    if encoding:
        empty_xmp(contents)
    else:
        blank_xmp(contents)
