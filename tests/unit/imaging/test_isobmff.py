"""The reader of HEIF boxes: items in files of encoders, and contradictions, which raise Malformed."""

from __future__ import annotations

import struct
from functools import partial

import pytest
from PIL import Image

from tests.support import pictures
from worker.imaging.containers.isobmff import MAX_ENTRIES, HeifFile, Item, Malformed, Nclx, read_heif


def parse(data: bytes) -> HeifFile:
    return read_heif(lambda size, at: data[at : at + size], len(data))


def contents(data: bytes, item: Item) -> bytes:
    return item.read(lambda size, at: data[at : at + size], len(data))


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + kind + body


def full_box(kind: bytes, version: int, *parts: bytes, flags: int = 0) -> bytes:
    return box(kind, bytes([version]), flags.to_bytes(3), *parts)


def infe(number: int, kind: bytes, text: bytes = b"\0") -> bytes:
    return full_box(b"infe", 2, struct.pack(">HH", number, 0), kind, text)


def heif(*boxes: bytes) -> bytes:
    return box(b"ftyp", b"mif1", bytes(4), b"mif1", b"heic") + full_box(b"meta", 0, *boxes)


def iinf(*entries: bytes) -> bytes:
    return full_box(b"iinf", 0, struct.pack(">H", len(entries)), *entries)


def test_items_of_a_heic_are_read() -> None:
    file = parse(pictures.HEIC)
    assert file.brands == (b"heic", b"mif1", b"heic", b"miaf")
    assert file.primary is not None
    assert (file.primary.kind, file.primary.size, file.primary.rotation) == (b"hvc1", (64, 64), 270)
    assert file.primary.bit_depths == (8, 8, 8)
    assert file.primary.find_property(b"hvcC")
    assert (file.primary.nclx, file.primary.icc_profile, file.primary.mirror) == (None, None, None)
    assert file.references == {(b"cdsc", 2): (1,)}
    assert file.items[2].kind == b"Exif"
    assert b"Daguerre" in contents(pictures.HEIC, file.items[2])
    assert max(end for item in file.items.values() for _, end in item.extents) == len(pictures.HEIC)


def test_alpha_and_colours_of_an_avif_are_read() -> None:
    data = pictures.encode("AVIF", pictures.transparent(), speed=10)
    file = parse(data)
    assert file.primary is not None
    assert file.primary.nclx == Nclx(1, 13, 6, full_range=True)
    (alpha,) = [item for item in file.items.values() if item.aux_type]
    assert alpha.aux_type == "urn:mpeg:mpegB:cicp:systems:auxiliary:alpha"
    assert file.references[b"auxl", alpha.id] == (file.primary_id,)
    profile = pictures.icc_profile(red=(0.1431, 0.0606, 0.7141), blue=(0.4361, 0.2225, 0.0139))
    tagged = parse(pictures.encode("AVIF", Image.new("RGB", (8, 8)), speed=10, icc_profile=profile))
    assert tagged.primary is not None
    assert tagged.primary.icc_profile == profile


@pytest.mark.parametrize("version", [0, 1, 2])
def test_every_version_of_iloc_is_read(version: int) -> None:
    number = partial(struct.pack, ">I" if version == 2 else ">H")
    method = b"" if version == 0 else b"\0\0"
    entry = number(7) + method + struct.pack(">HIHIIII", 0, 100, 2, 1, 5, 20, 6)
    iloc = full_box(b"iloc", version, b"\x44\x40", number(1), entry)
    assert parse(heif(iinf(infe(7, b"hvc1")), iloc)).items[7].extents == [(101, 106), (120, 126)]


def test_item_in_idat_has_file_offsets() -> None:
    entry = struct.pack(">HHHHII", 1, 1, 0, 1, 2, 3)
    data = heif(
        iinf(infe(1, b"grid")), full_box(b"iloc", 1, b"\x44\0", struct.pack(">H", 1), entry), box(b"idat", b"abcdefg")
    )
    assert contents(data, parse(data).items[1]) == b"cde"


def test_extent_without_length_ends_with_the_file() -> None:
    iloc = full_box(b"iloc", 0, b"\x40\0", struct.pack(">HHHHI", 1, 1, 0, 1, 9))
    data = heif(iinf(infe(1, b"av01")), iloc)
    assert parse(data).items[1].extents == [(9, len(data))]


def test_file_without_meta_has_no_items() -> None:
    assert parse(b"").items == parse(b"\0\0\0\x10ftypheic").items == {}


def test_endless_lists_are_malformed() -> None:
    many = struct.pack(">HHH", 1, 0, 0xFFFF) * (MAX_ENTRIES // 0xFFFF + 1)
    iloc = full_box(b"iloc", 0, b"\0\0", struct.pack(">H", 0xFFFF), many)
    associations = full_box(b"ipma", 0, struct.pack(">I", 2**32 - 1))
    for hostile in (iloc, box(b"iprp", associations), full_box(b"pitm", 0), full_box(b"iloc", 0)):
        with pytest.raises(Malformed):
            parse(heif(iinf(infe(1, b"hvc1")), hostile))
    with pytest.raises(Malformed):
        parse(box(b"free") * (MAX_ENTRIES + 1))


def test_truncated_64_bit_size_ends_the_boxes() -> None:
    """Such a box used to be read with a negative size, which the system refuses."""
    file = parse(box(b"ftyp", b"heic") + struct.pack(">I", 1) + b"meta" + b"\1" * 7)
    assert [box.kind for box in file.boxes] == [b"ftyp"]
