"""The removal of locations from hostile files: valid patches, in bounded time."""

from __future__ import annotations

import random
import struct
import time
import zlib
from collections.abc import Callable

import pytest

from tests.support import hostile_pictures, pictures
from tests.support.imaging import Find, Strip
from tests.support.locations import (
    FILES,
    XMP_HEAD,
    To,
    box,
    iim,
    patched,
    probed,
    resource_block,
    tiff_block,
    with_chunks,
    with_gif_xmp,
)


def test_gps_directory_that_is_the_first_stays(strip: Strip) -> None:
    block = tiff_block({"image": [(0x010F, 2, 6, b"Canon\0"), (0x8825, 4, 1, To("image"))]})
    clean = strip(hostile_pictures.jpeg_with(hostile_pictures.segment(0xE1, b"Exif\0\0" + block)))
    assert probed(clean) == {"Make": "Canon"}


def test_gps_pointer_to_other_data(strip: Strip) -> None:
    text = bytes(range(128, 250))
    block = tiff_block({"image": [(0x010F, 2, 6, b"Canon\0"), (0x8825, 4, 1, struct.pack("<I", 50))]}) + bytes(6) + text
    clean = strip(hostile_pictures.jpeg_with(hostile_pictures.segment(0xE1, b"Exif\0\0" + block)))
    assert text in clean
    assert probed(clean) == {"Make": "Canon"}


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_have_valid_patches(find: Find, name: str) -> None:
    data, chance = FILES[name], random.Random(name)
    marks = (b"Exif", b"8BIM", b"\x25\x88", b"\x88\x25", b"iloc", b"XMP", b"<")
    marked = [data.index(mark) for mark in marks if mark in data]
    for _ in range(60):
        copy = bytearray(data)
        for _ in range(chance.choice((1, 2, 8, 40))):
            at = chance.randrange(len(copy))
            if chance.random() < 0.7:
                at = (chance.choice(marked) + chance.randrange(-20, 200)) % len(copy)
            copy[at] = chance.choice((0, 1, 0xFF, 0x7F, 0x80, chance.randrange(256)))
        if chance.random() < 0.3:
            del copy[chance.randrange(len(copy)) :]
        if chance.random() < 0.1:
            at = chance.randrange(len(copy) + 1)
            copy[at:at] = copy[: chance.randrange(300)]
        patched(bytes(copy), find(bytes(copy)))


def bombs() -> dict[str, Callable[[], bytes]]:
    """Returns files that cause much work."""
    directory = struct.pack("<H", 5_000) + struct.pack("<HHII", 0x8825, 4, 1, 8) * 5_000

    def overlapping() -> bytes:
        """Sub-directories that start at every byte."""
        offsets = struct.pack("<20000I", *range(100, 20_100))
        head = b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHII", 0x014A, 4, 20_000, 26) + bytes(4)
        return head + offsets + struct.pack("<HHII", 2, 5, 3, 0) * 30_000

    def repeated_xmp() -> bytes:
        entries = struct.pack("<HHII", 700, 1, 1_000_000, 0) * 60_000
        return b"II*\0" + struct.pack("<IH", 8, 60_000) + entries + bytes(1_000_000)

    def large_values() -> bytes:
        entries = struct.pack("<HHII", 2, 7, 2**32 - 1, 0) * 60_000
        return tiff_block({"image": [(0x8825, 4, 1, struct.pack("<I", 26))]}) + struct.pack("<H", 60_000) + entries

    def items() -> bytes:
        table = struct.pack(">HHIH", 2, 0, 0, 65_535) + struct.pack(">II", 0, 0) * 65_535
        infe = box(b"infe", b"\2\0\0\0", struct.pack(">HH", 2, 0), b"mime\0application/rdf+xml\0")
        iloc = box(b"iloc", bytes([0, 0, 0, 0, 0x44, 0x40]), struct.pack(">H", 9), table * 9)
        meta = box(b"meta", bytes(4), box(b"iinf", bytes(4), struct.pack(">H", 1), infe), iloc)
        return box(b"ftyp", b"avif", bytes(4), b"avif") + meta

    elements = "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdef", "bcdefg", strict=True))
    packed = zlib.compress(bytes(20_000_000))
    return {
        "a directory of pointers to itself": lambda: b"II*\0" + struct.pack("<I", 8) + directory,
        "overlapping directories": overlapping,
        "one packet, often": repeated_xmp,
        "values larger than the file": large_values,
        "items of 65,535 times the file": items,
        "GIF of short blocks": lambda: with_gif_xmp(b"\1a" * 500_000),
        "JPEG of starts of segments": lambda: pictures.encode("JPEG") + b"\xff\xd8\xff\xe1\0\2" * 1_000_000,
        "IPTC of nothing": lambda: hostile_pictures.jpeg_with(
            *[hostile_pictures.segment(0xED, b"Photoshop 3.0\0" + resource_block(0x404, iim((5, b"")) * 12_000))] * 40
        ),
        "PNG of packed texts": lambda: with_chunks(
            pictures.encode("PNG"), *[(b"zTXt", b"Raw profile type exif\0\0" + packed)] * 40
        ),
        "PNG of a profile of spaces": lambda: with_chunks(
            pictures.encode("PNG"), (b"tEXt", b"Raw profile type exif\0\na\n1" + b" " * 500_000 + b"!")
        ),
        "SVG of entities": f'<!DOCTYPE svg [<!ENTITY a "<metadata/><metadata/>">{elements}]><svg>&g;</svg>'.encode,
        "SVG of open elements": lambda: b"<svg>" + b"<RDF>" * 100_000,
        "SVG of an open tag": lambda: b"<svg><metadata " + b"a='b' c " * 100_000,
        "XMP of colons": lambda: hostile_pictures.jpeg_with(
            *[hostile_pictures.segment(0xE1, XMP_HEAD + b":" + b"gp." * 21_000)] * 20
        ),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", bombs())
def test_location_removal_is_bounded(find: Find, name: str) -> None:
    data = bombs()[name]()
    began = time.process_time()
    patches = find(data)
    took = time.process_time() - began
    patched(data, patches)
    assert took < 3
