"""Places in a HEIF file, AVIF or HEIC: items of EXIF and XMP (ISO/IEC 23008-12, annex A; 14496-12, 8.11)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from worker.imaging.location_removal.blocks import blank_exif
from worker.imaging.location_removal.regions import Copy, Region, Unreadable
from worker.imaging.location_removal.xmp import blank_xmp, empty_xmp

_XMP_UUID = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
# Where an item lies: in the file, or in the box `idat`. The third way, in another item, no metadata uses.
_IN_FILE, _IN_IDAT = 0, 1


def blank_heif(copy: Copy) -> None:
    for kind, box in _boxes(copy.region((0, copy.size))):
        with suppress(Unreadable):
            if kind == b"meta":
                _blank_meta(copy, box)
            elif kind == b"uuid" and box.read(0, 16) == _XMP_UUID:
                blank_xmp(box.part(16, box.size))


def _boxes(region: Region, at: int = 0) -> Iterator[tuple[bytes, Region]]:
    """Type and contents."""
    while at + 8 <= region.size:
        region.copy.step()
        size, kind, head = region.number(at, 4), region.read(at + 4, 4), 8
        if size == 1:  # told in 64 bits
            size, head = region.number(at + 8, 8), 16
        elif size == 0:  # to the end
            size = region.size - at
        if size < head:
            return
        yield kind, region.part(at + head, size - head)
        at += size


@dataclass(slots=True)
class _Item:
    """`packed` is an XMP whose encoding is not plain."""

    exif: bool
    packed: bool = False
    extents: list[tuple[int, int, int]] = field(default_factory=list)  # construction method, offset, length


def _blank_meta(copy: Copy, meta: Region) -> None:
    boxes: dict[bytes, Region] = {}
    for kind, box in _boxes(meta, 4):
        boxes.setdefault(kind, box)
    if b"iinf" not in boxes or b"iloc" not in boxes:
        return
    items = _items(boxes[b"iinf"])
    if not items:
        return
    with suppress(Unreadable):
        _locate(boxes[b"iloc"], items)
    for item in items.values():
        with suppress(Unreadable):
            _blank_item(item, _contents(copy, boxes.get(b"idat"), item))


def _items(iinf: Region) -> dict[int, _Item]:
    """Those that hold metadata, by their ids."""
    items: dict[int, _Item] = {}
    with suppress(Unreadable):
        for kind, infe in _boxes(iinf, 6 if iinf.number(0, 1) == 0 else 8):
            version = infe.number(0, 1)
            if kind != b"infe" or version not in {2, 3}:
                continue
            wide = 4 if version == 3 else 2
            item_id, item_type = infe.number(4, wide), infe.read(6 + wide, 4)
            if item_type == b"Exif":
                items[item_id] = _Item(exif=True)
            elif item_type == b"mime":
                _, content_type, encoding, *_ = (*infe.read(10 + wide, 1000).split(b"\0"), b"", b"")
                if b"xml" in content_type.lower():
                    items[item_id] = _Item(exif=False, packed=bool(encoding))
    return items


def _locate(iloc: Region, items: dict[int, _Item]) -> None:
    table = iloc.read(0, iloc.size)

    def number(at: int, size: int) -> int:
        if at + size > len(table):
            raise Unreadable
        return int.from_bytes(table[at : at + size])

    version, sizes = number(0, 1), number(4, 2)
    of_offset, of_length, of_base = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    of_index = sizes & 15 if version in {1, 2} else 0
    wide = 4 if version == 2 else 2
    count, at = number(6, wide), 6 + wide
    for _ in range(count):
        iloc.copy.step()
        item = items.get(number(at, wide))
        at += wide
        method = _IN_FILE
        if version in {1, 2}:
            method = number(at, 2) & 15
            at += 2
        base, extents = number(at + 2, of_base), number(at + 2 + of_base, 2)
        at += 4 + of_base
        if item is None:
            at += extents * (of_index + of_offset + of_length)
            continue
        for _ in range(extents):
            iloc.copy.step()
            offset = base + number(at + of_index, of_offset)
            item.extents.append((method, offset, number(at + of_index + of_offset, of_length)))
            at += of_index + of_offset + of_length


def _contents(copy: Copy, idat: Region | None, item: _Item) -> Region:
    """No length means up to the end of the file, or of `idat`. Raises Unreadable for what is larger than the file."""
    pieces: list[tuple[int, int]] = []
    for method, offset, length in item.extents:
        if method == _IN_FILE:
            pieces.append((offset, offset + length if length else copy.size))
        elif method == _IN_IDAT and idat is not None:
            pieces += idat.part(offset, length or idat.size).pieces
    contents = copy.region(*pieces)
    if contents.size > copy.size:
        raise Unreadable
    return contents


def _blank_item(item: _Item, contents: Region) -> None:
    if item.exif:
        # It says first how many bytes come before the TIFF structure.
        blank_exif(contents.part(4 + contents.number(0, 4), contents.size))
    elif item.packed:
        empty_xmp(contents)
    else:
        blank_xmp(contents)
