"""Boxes of ISO base media files (ISO/IEC 14496-12) and the items of HEIF (ISO/IEC 23008-12): HEIC, AVIF.

A contradiction in the file raises Malformed; additions of newer versions are skipped. Every loop is bounded by
MAX_ENTRIES. Only the heads of boxes and the whole of `meta` are read.

`read_heif` is for decoding: one contradiction refuses the file. Code that needs everything up to the contradiction,
such as the removal of locations, uses `open_meta`, `read_items` and `locate_items`, which fill in items until they
raise.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from worker.file_headers import Read

# Of one list: items, extents, properties, references. A picture of an iPhone has 50 to 150 items.
MAX_ENTRIES = 100_000

# `construction_method`, where the data of an item is: in the file, in the box `idat`, or in another item.
_IN_FILE, _IN_IDAT, _IN_ITEM = 0, 1, 2
_FULL_BOX_BYTES = 4  # version and flags


class Malformed(Exception):
    """The boxes contradict themselves, end too early, or are too many."""


@dataclass(frozen=True, slots=True)
class Box:
    """A box: its type, and start and end of its contents in the file. The end may be beyond that of the file."""

    kind: bytes
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Nclx:
    """Coded colours, by the code points of ISO/IEC 23091-2 (H.273)."""

    primaries: int
    transfer: int
    matrix: int
    full_range: bool


@dataclass(slots=True)
class Item:
    """An item of `meta`. `text` is what follows its type: name, content type and encoding, each ended by a zero byte.

    `extents` are pairs of start and end in the file, in order. An end may be beyond that of the file, and an extent
    without a length ends with the file. An item inside another item has none. `is_external` means that the item is in
    another file (`data_reference_index`), and so are the extents. `properties` are type and contents of each associated
    property, in the order of association.
    """

    id: int
    kind: bytes = b""
    text: bytes = b""
    extents: list[tuple[int, int]] = field(default_factory=list)
    is_external: bool = False
    properties: list[tuple[bytes, bytes]] = field(default_factory=list)

    def find_property(self, kind: bytes) -> bytes | None:
        """Returns the contents of the first property of this type."""
        return next((contents for name, contents in self.properties if name == kind), None)

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height in pixels (`ispe`), before any rotation."""
        contents = self.find_property(b"ispe") or b""
        return struct.unpack_from(">II", contents, 4) if len(contents) >= 12 else None

    @property
    def nclx(self) -> Nclx | None:
        contents = self._colour(b"nclx")
        if contents is None or len(contents) < 7:
            return None
        primaries, transfer, matrix = struct.unpack_from(">HHH", contents)
        return Nclx(primaries, transfer, matrix, full_range=bool(contents[6] & 0x80))

    @property
    def icc_profile(self) -> bytes | None:
        return self._colour(b"prof") or self._colour(b"rICC")

    @property
    def bit_depths(self) -> tuple[int, ...]:
        """Bits of each channel (`pixi`); empty if the item does not say."""
        contents = self.find_property(b"pixi") or b""
        return tuple(contents[5 : 5 + contents[4]]) if len(contents) > 5 else ()

    @property
    def rotation(self) -> int:
        """Degrees anticlockwise (`irot`): 0, 90, 180 or 270."""
        contents = self.find_property(b"irot")
        return 90 * (contents[0] & 3) if contents else 0

    @property
    def mirror(self) -> int | None:
        """The axis of `imir`: 0 exchanges top and bottom, 1 left and right."""
        contents = self.find_property(b"imir")
        return contents[0] & 1 if contents else None

    @property
    def aux_type(self) -> str | None:
        """The URN of an auxiliary picture (`auxC`): alpha, depth, a gain map."""
        contents = self.find_property(b"auxC")
        return None if contents is None else contents[_FULL_BOX_BYTES:].partition(b"\0")[0].decode("latin-1")

    def read(self, read: Read, limit: int) -> bytes:
        """Returns the item's bytes, at most `limit` of them, and none if it is external."""
        pieces: list[bytes] = []
        for start, end in () if self.is_external else self.extents:
            pieces.append(read(min(end - start, limit), start))
            limit -= len(pieces[-1])
        return b"".join(pieces)

    def _colour(self, kind: bytes) -> bytes | None:
        """Returns the contents of the `colr` of this type: an item may have one of nclx and one of a profile."""
        return next((body[4:] for name, body in self.properties if name == b"colr" and body[:4] == kind), None)


@dataclass(frozen=True, slots=True)
class HeifFile:
    """The structure of a HEIF file. `references` are the ids that an item refers to, by type and the item's id: `dimg`
    to the tiles of a grid, `thmb` and `auxl` from a thumbnail or auxiliary picture to its master, `cdsc` from metadata
    to the picture.
    """

    boxes: list[Box]
    brands: tuple[bytes, ...]
    items: dict[int, Item]
    primary_id: int | None
    references: dict[tuple[bytes, int], tuple[int, ...]]

    @property
    def primary(self) -> Item | None:
        return None if self.primary_id is None else self.items.get(self.primary_id)


def read_heif(read: Read, size: int) -> HeifFile:
    """Reads the boxes of a file of `size` bytes. Raises Malformed."""
    top = list(iterate_boxes(read, 0, size))
    ftyp = next((box for box in top if box.kind == b"ftyp"), None)
    brands = _read_brands(read(min(ftyp.end, size) - ftyp.start, ftyp.start)) if ftyp else ()
    meta = next((box for box in top if box.kind == b"meta"), None)
    if meta is None:
        return HeifFile(top, brands, {}, None, {})
    return _read_meta(top, brands, open_meta(read, meta, size), size)


@dataclass(frozen=True, slots=True)
class Meta:
    """The box `meta`, which is in memory, and the first box of each type in it. `read` takes offsets of the file."""

    read: Read
    boxes: dict[bytes, Box]


def open_meta(read: Read, meta: Box, size: int) -> Meta:
    """Reads the box `meta` of a file of `size` bytes. Raises Malformed if it holds too many boxes."""
    start = meta.start
    contents = read(min(meta.end, size) - start, start)

    def read_contents(length: int, at: int) -> bytes:
        return contents[at - start : at - start + length] if at >= start else b""

    boxes: dict[bytes, Box] = {}
    for box in iterate_boxes(read_contents, start + _FULL_BOX_BYTES, start + len(contents)):
        boxes.setdefault(box.kind, box)
    return Meta(read_contents, boxes)


def iterate_boxes(read: Read, start: int, end: int) -> Iterator[Box]:
    """Yields the boxes between these offsets of a file, up to the first invalid one. Raises Malformed if there are too
    many.
    """
    at = start
    for _ in range(MAX_ENTRIES):
        if at + 8 > end:
            return
        head = read(16, at)
        if len(head) < 8:
            return
        size, contents = int.from_bytes(head[:4]), at + 8
        if size == 1:  # a size of 64 bits follows
            if len(head) < 16:
                return
            size, contents = int.from_bytes(head[8:]), at + 16
        elif size == 0:  # the box ends with the file
            size = end - at
        if at + size < contents:
            return
        yield Box(head[4:8], contents, at + size)
        at += size
    raise Malformed("too many boxes")


def _read_brands(ftyp: bytes) -> tuple[bytes, ...]:
    """Returns the major brand, then the compatible ones."""
    return (ftyp[:4], *(ftyp[at : at + 4] for at in range(8, min(len(ftyp), 4 * MAX_ENTRIES) - 3, 4)))


def _read_meta(top: list[Box], brands: tuple[bytes, ...], meta: Meta, size: int) -> HeifFile:
    read, boxes = meta.read, meta.boxes
    items: dict[int, Item] = {}
    read_items(meta, items)
    locate_items(meta, items, size)
    if b"iprp" in boxes:
        _associate_properties(read, boxes[b"iprp"], items)
    primary = _Numbers.of(read, boxes[b"pitm"]).item_id_of_version(0) if b"pitm" in boxes else None
    references = _read_references(read, boxes[b"iref"]) if b"iref" in boxes else {}
    return HeifFile(top, brands, items, primary, references)


@dataclass(slots=True)
class _Numbers:
    """The contents of a full box, read number by number."""

    data: bytes
    at: int = _FULL_BOX_BYTES

    @classmethod
    def of(cls, read: Read, box: Box) -> _Numbers:
        return cls(read(box.end - box.start, box.start))

    @property
    def version(self) -> int:
        return self.data[0] if self.data else 0

    @property
    def flags(self) -> int:
        return int.from_bytes(self.data[1:4])

    def next(self, size: int) -> int:
        """Returns the next big-endian number of `size` bytes. Raises Malformed at the end of the box."""
        if self.at + size > len(self.data):
            raise Malformed("a box ends too early")
        self.at += size
        return int.from_bytes(self.data[self.at - size : self.at])

    def item_id_of_version(self, short: int) -> int:
        """Returns the next item id, which has 16 bits up to the version `short`, and 32 bits in later ones."""
        return self.next(2 if self.version <= short else 4)

    def count(self, size: int) -> int:
        """Returns the next number, of the entries that follow. Raises Malformed if they are too many."""
        count = self.next(size)
        if count > MAX_ENTRIES:
            raise Malformed("too many entries")
        return count


def read_items(meta: Meta, items: dict[int, Item]) -> None:
    """Adds the items to `items`, by their ids (8.11.6). The first item with an id counts. Raises Malformed."""
    iinf = meta.boxes.get(b"iinf")
    if iinf is None:
        return
    version = meta.read(1, iinf.start)
    entries = iinf.start + _FULL_BOX_BYTES + (2 if version == b"\0" else 4)
    for box in iterate_boxes(meta.read, entries, iinf.end):
        if box.kind != b"infe":
            continue
        numbers = _Numbers.of(meta.read, box)
        item = Item(numbers.item_id_of_version(2))
        numbers.next(2)  # item_protection_index
        if numbers.version >= 2:
            item.kind = numbers.next(4).to_bytes(4)
        item.text = numbers.data[numbers.at :]
        items.setdefault(item.id, item)


def locate_items(meta: Meta, items: dict[int, Item], size: int) -> None:
    """Adds extents to the items of a file of `size` bytes (8.11.3). Raises Malformed."""
    if b"iloc" not in meta.boxes:
        return
    iloc, idat = _Numbers.of(meta.read, meta.boxes[b"iloc"]), meta.boxes.get(b"idat")
    sizes = iloc.next(2)
    offset_bytes, length_bytes, base_bytes = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_bytes = sizes & 15 if iloc.version in {1, 2} else 0
    entries_left = MAX_ENTRIES
    for _ in range(iloc.count(2 if iloc.version < 2 else 4)):
        item_id = iloc.item_id_of_version(1)
        item = items.get(item_id) or Item(item_id)
        method = iloc.next(2) & 15 if iloc.version in {1, 2} else _IN_FILE
        item.is_external = bool(iloc.next(2))
        base, extents = iloc.next(base_bytes), iloc.next(2)
        entries_left -= 1 + extents
        if entries_left < 0:
            raise Malformed("too many extents")
        for _ in range(extents):
            iloc.next(index_bytes)
            offset, length = base + iloc.next(offset_bytes), iloc.next(length_bytes)
            if method == _IN_ITEM:
                continue
            start, end = (0, size) if method == _IN_FILE else (idat.start, idat.end) if idat else (size, size)
            item.extents.append((start + offset, start + offset + length if length else end))


def _associate_properties(read: Read, iprp: Box, items: dict[int, Item]) -> None:
    """Gives each item its properties (ISO/IEC 23008-12, 9.3). An index that is out of range is skipped."""
    properties: list[tuple[bytes, bytes]] = []
    associations: list[_Numbers] = []
    for box in iterate_boxes(read, iprp.start, iprp.end):
        if box.kind == b"ipco":
            inner_boxes = iterate_boxes(read, box.start, box.end)
            properties.extend((inner.kind, read(inner.end - inner.start, inner.start)) for inner in inner_boxes)
        elif box.kind == b"ipma":
            associations.append(_Numbers.of(read, box))
    entries_left = MAX_ENTRIES
    for ipma in associations:
        wide = ipma.flags & 1
        for _ in range(ipma.count(4)):
            item = items.get(ipma.item_id_of_version(0))
            count = ipma.next(1)
            entries_left -= 1 + count
            if entries_left < 0:
                raise Malformed("too many properties")
            for _ in range(count):
                number = ipma.next(2) & 0x7FFF if wide else ipma.next(1) & 0x7F  # without the essential bit
                if item is not None and 0 < number <= len(properties):
                    item.properties.append(properties[number - 1])


def _read_references(read: Read, iref: Box) -> dict[tuple[bytes, int], tuple[int, ...]]:
    """Returns the ids that each item refers to, by type and the item's id (8.11.12)."""
    references: dict[tuple[bytes, int], tuple[int, ...]] = {}
    version = _Numbers(read(_FULL_BOX_BYTES, iref.start)).version
    entries_left = MAX_ENTRIES
    for box in iterate_boxes(read, iref.start + _FULL_BOX_BYTES, iref.end):
        numbers = _Numbers(read(box.end - box.start, box.start), at=0)
        id_bytes = 2 if version == 0 else 4
        item_id, count = numbers.next(id_bytes), numbers.next(2)
        entries_left -= 1 + count
        if entries_left < 0:
            raise Malformed("too many references")
        targets = tuple(numbers.next(id_bytes) for _ in range(count))
        references.setdefault((box.kind, item_id), targets)
    return references
