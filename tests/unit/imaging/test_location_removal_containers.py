"""The removal of locations from containers in unusual shapes: segments, items, encodings."""

from __future__ import annotations

import gzip
import struct
from xml.etree import ElementTree

import pytest

from tests.support import hostile_pictures, pictures
from tests.support.imaging import Strip
from tests.support.locations import IIM, MAKER_NOTE, SECONDS, TOWN, box, exif_block, find_marks, pixels, svg, xmp


def test_exif_over_several_segments(strip: Strip) -> None:
    block = exif_block()
    cut = block.index(struct.pack("<II", *SECONDS)) + 3
    data = hostile_pictures.jpeg_with(
        hostile_pictures.segment(0xE1, b"Exif\0\0" + block[:cut]),
        hostile_pictures.segment(0xE1, b"Exif\0\0" + block[cut:]),
    )
    clean = strip(data)
    assert find_marks(clean) == []
    assert struct.pack("<II", *SECONDS)[3:] not in clean


def test_thumbnails_and_appended_pictures(strip: Strip) -> None:
    """Phones append a depth map or a gain map, and cameras a preview."""
    one = hostile_pictures.jpeg_with(hostile_pictures.segment(0xE1, b"Exif\0\0" + exif_block()))
    for data in (
        pictures.encode("JPEG") + bytes(10) + one + one,
        hostile_pictures.jpeg_with(hostile_pictures.segment(0xE1, b"Exif\0\0" + exif_block() + one)),
    ):
        clean = strip(data)
        assert find_marks(clean) == []
        assert pixels(clean) == pixels(data)


def heif(version: int) -> bytes:
    """Returns boxes without a picture: EXIF in two pieces, out of order in the file or in `idat`, and XMP.

    The boxes `iloc` and `infe` have this version.
    """
    block, packet = bytes.fromhex("00000006") + b"Exif\0\0" + exif_block(), xmp()
    cut = block.index(struct.pack("<II", *SECONDS)) + 3
    wide = "I" if version == 2 else "H"
    infe = [
        box(b"infe", bytes([3 if version == 2 else 2, 0, 0, 0]), struct.pack(f">{wide}H", item, 0), kind)
        for item, kind in ((1, b"av01\0"), (2, b"Exif\0"), (3, b"mime\0application/rdf+xml\0"))
    ]
    idat = bytes(7) + packet

    def meta(base: int) -> bytes:
        in_file, in_idat = (struct.pack(">H", 0), struct.pack(">H", 1)) if version else (b"", b"")
        places = [
            struct.pack(f">{wide}", 2) + in_file + struct.pack(">HIH", 0, base, 2),
            # The second half of the block lies before its first.
            struct.pack(">IIII", len(block) - cut, cut, 0, len(block) - cut),
            struct.pack(f">{wide}", 3) + in_idat,
            struct.pack(">HIHII", 0, *((0, 1, 7, 0) if version else (base, 1, len(block), len(packet)))),
        ]
        table = bytes([version, 0, 0, 0, 0x44, 0x40]) + struct.pack(f">{wide}", 2) + b"".join(places)
        return box(
            b"meta",
            bytes(4),
            box(b"iinf", bytes(4), struct.pack(">H", 3), *infe),
            box(b"iloc", table),
            box(b"idat", idat) if version else b"",
        )

    head = box(b"ftyp", b"avif", bytes(4), b"avif")
    start = len(head) + len(meta(0)) + 8
    return head + meta(start) + box(b"mdat", block[cut:], block[:cut], b"" if version else packet)


@pytest.mark.parametrize("version", [0, 1, 2])
def test_heif_items_in_pieces(strip: Strip, version: int) -> None:
    clean = strip(heif(version))
    assert find_marks(clean) == []
    assert struct.pack("<II", *SECONDS)[3:] not in clean
    assert MAKER_NOTE in clean


def test_heif_xmp_in_a_box(strip: Strip) -> None:
    uuid = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
    data = pictures.encode("AVIF", speed=10) + box(b"uuid", uuid, xmp())
    assert find_marks(strip(data)) == []


def test_svg_metadata_in_a_comment_is_ignored(strip: Strip) -> None:
    """The drawing is between the comment and the true end."""
    data = svg()
    clean = strip(data)
    assert b'<rect width="48"' in clean
    assert b"<!-- <metadata> -->" in clean
    assert b"</metadata><rect" in clean
    assert b'<metadata id="a>b">  ' in clean


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "iso-8859-1"])
def test_svg_metadata_in_another_encoding(strip: Strip, encoding: str) -> None:
    declaration = f'<?xml version="1.0" encoding="{encoding}"?>'
    data = svg().decode().replace('<?xml version="1.0"?>', declaration).replace("lake", "café").encode(encoding)
    clean = strip(data).decode(encoding)
    assert TOWN.decode() in data.decode(encoding)
    assert TOWN.decode() not in clean
    assert "A café" in clean
    ElementTree.fromstring(clean.removeprefix(declaration).encode())  # it is valid XML


def test_compressed_svg_metadata(strip: Strip) -> None:
    data = gzip.compress(svg())
    clean = gzip.decompress(strip(data))
    assert TOWN not in clean
    assert b'<metadata id="a>b"></metadata>' in clean
    plain = gzip.compress(pictures.SVG)
    assert strip(plain) == plain


def test_tiff_iptc_with_swapped_bytes(strip: Strip) -> None:
    block = IIM + bytes(-len(IIM) % 4)
    turned = b"".join(block[at : at + 4][::-1] for at in range(0, len(block), 4))
    data = hostile_pictures.tiff_of((0x83BB, 4, len(turned) // 4, turned))
    clean = strip(data)
    assert turned[:40] in data
    assert turned[:40] not in clean
    assert bytes(len(turned)) in clean
