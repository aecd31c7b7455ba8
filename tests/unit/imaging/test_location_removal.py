"""The removal of locations from picture files, which changes nothing else."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pi_heif
import pytest
import pyvips
from PIL import Image, ImageSequence
from PIL.TiffImagePlugin import TiffImageFile

from tests.support import hostile_pictures, pictures
from worker import imaging
from worker.imaging.exif import read_exif
from worker.imaging.location_removal.regions import Patch
from worker.imaging.operations import find_locations

Find = Callable[[bytes], list[Patch]]
Strip = Callable[[bytes], bytes]

SECONDS = (281_234_567, 10_000_000)
TOWN = b"Hidden Vale"
MAKER_NOTE = bytes(range(7, 107))
XMP_HEAD = b"http://ns.adobe.com/xap/1.0/\0"
EXTENDED_XMP_HEAD = b"http://ns.adobe.com/xmp/extension/\0"
GIF_TRAILER = bytes([1, *range(255, -1, -1), 0])


@pytest.fixture
def find(tmp_path: Path) -> Find:
    path = tmp_path / "picture"

    def run(data: bytes) -> list[Patch]:
        path.write_bytes(data)
        result = find_locations(str(path))
        assert path.read_bytes() == data
        return result

    return run


@pytest.fixture
def strip(find: Find) -> Strip:
    def run(data: bytes) -> bytes:
        return patched(data, find(data))

    return run


def patched(data: bytes, patches: list[Patch]) -> bytes:
    """Applies patches, after a check that each is within the file, after the one before it, and not empty."""
    copy, end = bytearray(data), 0
    for offset, new in patches:
        assert end <= offset < offset + len(new) <= len(data)
        end = offset + len(new)
        copy[offset:end] = new
    assert len(copy) == len(data)
    return bytes(copy)


# Blocks with a location


class To(str):
    """A value that is the offset of the directory of this name."""

    __slots__ = ()


Directory = list[tuple[int, int, int, bytes | To]]


def tiff_block(directories: dict[str, Directory], chain: tuple[str, ...] = (), order: str = "<") -> bytes:
    """Returns a block that starts with the first directory; those of the chain follow each other."""
    offsets, at = {}, 8
    for name, entries in directories.items():
        offsets[name] = at
        at += 6 + 12 * len(entries) + sum(len(value) for *_, value in entries if not fits(value))
    following = dict(pairwise(chain))
    body = struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, 8)
    for name, entries in directories.items():
        end, outside = offsets[name] + 6 + 12 * len(entries), b""
        body += struct.pack(order + "H", len(entries))
        for tag, kind, count, value in entries:
            if isinstance(value, To):
                field = struct.pack(order + "I", offsets[value])
            elif fits(value):
                field = value.ljust(4, b"\0")
            else:
                field = struct.pack(order + "I", end + len(outside))
                outside += value
            body += struct.pack(order + "HHI", tag, kind, count) + field
        body += struct.pack(order + "I", offsets[following[name]] if name in following else 0) + outside
    return body


def fits(value: bytes | To) -> bool:
    return isinstance(value, To) or len(value) <= 4


def gps(order: str) -> Directory:
    degrees = pictures.rationals(2, (47, 1), (33, 1), SECONDS, order=order)
    return [
        (1, 2, 2, b"N\0"),
        degrees,
        (3, 2, 2, b"E\0"),
        (4, *degrees[1:]),
        (0x1B, 7, 8 + len(TOWN), b"ASCII\0\0\0" + TOWN),
        (0x1D, 2, 11, b"2024:05:06\0"),
    ]


def exif_block(order: str = "<") -> bytes:
    """Returns a block like that of a camera, with GPS in its place, for the thumbnail, and in a wrong place."""
    short = struct.pack(order + "H", 6)
    return tiff_block(
        {
            "image": [
                (0x010F, 2, 6, b"Canon\0"),
                (0x0112, 3, 1, short),
                (0x8769, 4, 1, To("photo")),
                (0x8825, 4, 1, To("gps")),
                (0x9C9B, 1, 10, "Lake".encode("utf-16-le") + b"\0\0"),
            ],
            "photo": [
                (0x8825, 4, 1, To("gps of the photo")),
                (0x9003, 2, 20, b"2024:05:06 07:08:09\0"),
                (0x927C, 7, len(MAKER_NOTE), MAKER_NOTE),
                (0xA005, 4, 1, To("interop")),
            ],
            "interop": [(1, 2, 4, b"R98\0")],
            "gps": gps(order),
            "thumbnail": [(0x0103, 3, 1, short), (0x8825, 4, 1, To("gps of the thumbnail"))],
            "gps of the photo": gps(order),
            "gps of the thumbnail": gps(order),
        },
        ("image", "thumbnail"),
        order,
    )


def xmp(name: str = "photoshop:City", text: bytes = TOWN) -> bytes:
    return (
        b'<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4">'
        b'<%b xmlns:%b="urn:it">%b</%b></rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
        % (name.encode(), name.partition(":")[0].encode(), text, name.encode())
    )


def iim(*values: tuple[int, bytes]) -> bytes:
    return b"".join(b"\x1c\2" + bytes([number]) + struct.pack(">H", len(value)) + value for number, value in values)


IIM = iim((5, b"A lake"), (26, TOWN), (27, TOWN), (90, TOWN), (92, TOWN), (95, TOWN), (100, b"XQZ"), (101, TOWN))


def resource_block(kind: int, value: bytes) -> bytes:
    return b"8BIM" + struct.pack(">HHI", kind, 0, len(value)) + value + bytes(len(value) % 2)


RESOURCES = (
    resource_block(0x03ED, bytes(16))
    + resource_block(0x0425, hashlib.md5(IIM).digest())
    + resource_block(0x0404, IIM)
    + resource_block(0x0422, exif_block(">"))
    + resource_block(0x0424, xmp())
    + resource_block(0x03EE, b"the last")
)


def jpeg() -> bytes:
    long = xmp("exif:GPSLatitude", b"47,33.4687N " + TOWN + b" " * 300)
    guid = hashlib.md5(long).hexdigest().encode()
    more = [
        hostile_pictures.segment(
            0xE1, EXTENDED_XMP_HEAD + guid + struct.pack(">II", len(long), at) + long[at : at + 150]
        )
        for at in range(0, len(long), 150)
    ]
    return hostile_pictures.jpeg_with(
        hostile_pictures.segment(0xE1, b"Exif\0\0" + exif_block()),
        hostile_pictures.segment(0xE1, XMP_HEAD + xmp("xmpNote:HasExtendedXMP", guid)),
        *reversed(more),
        hostile_pictures.segment(0xE1, b"Exif\0\0" + exif_block(">")),
        hostile_pictures.segment(0xED, b"Photoshop 3.0\0" + RESOURCES[:300]),
        hostile_pictures.segment(0xED, b"Photoshop 3.0\0" + RESOURCES[300:]),
    )


def with_chunks(data: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    return data[:33] + b"".join(pictures.chunk(kind, body) for kind, body in chunks) + data[33:]


def profile(block: bytes, name: bytes = b"exif") -> bytes:
    lines = block.hex().encode()
    digits = b"\n".join(lines[at : at + 72] for at in range(0, len(lines), 72))
    return b"\n%b\n%8d\n%b\n" % (name, len(block), digits)


def text_chunks() -> dict[str, tuple[bytes, bytes]]:
    """Returns texts of a PNG with a location, in every notation."""
    return {
        "XMP": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp()),
        "XMP, packed": (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp())),
        "EXIF": (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile(b"Exif\0\0" + exif_block()))),
        "EXIF, not packed": (b"tEXt", b"Raw profile type APP1\0" + profile(b"Exif\0\0" + exif_block())),
        "EXIF, as iTXt": (b"iTXt", b"Raw profile type APP1\0\1\0\0\0" + zlib.compress(profile(exif_block()))),
        "XMP as a profile": (b"zTXt", b"Raw profile type xmp\0\0" + zlib.compress(profile(xmp(), b"xmp"))),
        "IPTC": (b"zTXt", b"Raw profile type iptc\0\0" + zlib.compress(profile(RESOURCES, b"iptc"))),
        "IPTC alone": (b"zTXt", b"Raw profile type iptc\0\0" + zlib.compress(profile(IIM, b"iptc"))),
        "a property": (b"tEXt", b"exif:GPSAreaInformation\0" + TOWN),
        "a short property": (b"tEXt", b"GPS\0abc"),
        "a profile that is none": (b"tEXt", b"Raw profile type exif\0" + TOWN),
    }


def png() -> bytes:
    return with_chunks(pictures.encode("PNG"), (b"eXIf", exif_block()), *text_chunks().values())


def with_gif_xmp(packet: bytes, *, as_blocks: bool = False) -> bytes:
    data = pictures.animate("GIF")
    at = data.index(b"\x2c")
    at = data.index(b"\x21\xf9") if b"\x21\xf9" in data[:at] else at
    blocks = b"".join(bytes([len(packet[i : i + 200])]) + packet[i : i + 200] for i in range(0, len(packet), 200))
    return data[:at] + b"\x21\xff\x0bXMP DataXMP" + (blocks + b"\0" if as_blocks else packet + GIF_TRAILER) + data[at:]


def tiff(order: str = "<") -> bytes:
    """Returns a page of one pixel with all metadata, and another page."""
    own: Directory = [(tag, 4, 1, struct.pack(order + "I", value)) for tag, value in hostile_pictures.ONE_PIXEL.items()]
    extra: Directory = [
        (0x010F, 2, 6, b"Canon\0"),
        (0x0112, 3, 1, struct.pack(order + "H", 6)),
        (700, 1, len(xmp()), xmp()),
        (0x830E, 12, 3, struct.pack(order + "3d", 0.5, 0.5, 0)),
        (0x83BB, 7, len(IIM), IIM),
        (0x8482, 12, 6, struct.pack(order + "6d", 0, 0, 0, 8.123456, 47.123456, 0)),
        (0x8649, 7, len(RESOURCES), RESOURCES),
        (0x8769, 4, 1, To("photo")),
        (0x87B1, 2, 12, TOWN + b"\0"),
        (0x8825, 4, 1, To("gps")),
    ]
    pages: dict[str, Directory] = {
        "page": sorted([*own, *extra], key=lambda entry: entry[0]),
        "photo": [(0x9003, 2, 20, b"2024:05:06 07:08:09\0"), (0x927C, 7, len(MAKER_NOTE), MAKER_NOTE)],
        "gps": gps(order),
        "next": [*own, (0x014A, 4, 2, struct.pack(order + "II", 0, 0)), (0x8825, 4, 1, To("gps of the next"))],
        "gps of the next": gps(order),
    }
    return tiff_block(pages, ("page", "next"), order)


def svg() -> bytes:
    return (
        b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY ns "http://ns.adobe.com/">]>'
        b'<!-- <metadata> --><svg xmlns="http://www.w3.org/2000/svg" width="96" height="64">'
        b'<title>A lake</title><rect width="48" height="64" fill="#dc1e1e"/>'
        b'<metadata id="a>b">' + xmp().replace(b"urn:it", b"&ns;") + b"</metadata>"
        b'<rect x="60" width="9" height="9"/></svg>'
    )


def files() -> dict[str, bytes]:
    """Returns files of each format with a location in every known way, by names that start with the format's."""
    both: dict[str, Any] = {"exif": b"Exif\0\0" + exif_block(">"), "xmp": xmp()}
    return {
        "jpeg": jpeg(),
        "png": png(),
        "webp": pictures.encode("WEBP", lossless=True, **both),
        "webp, animated": pictures.encode(
            "WEBP", pictures.frames(1)[0], save_all=True, append_images=pictures.frames(3)[1:], **both
        ),
        "gif": with_gif_xmp(xmp()),
        "gif, in blocks": with_gif_xmp(xmp(), as_blocks=True),
        "avif": pictures.encode("AVIF", speed=10, **both),
        "tiff": tiff(),
        "tiff, big endian": tiff(">"),
        "tiff, BigTIFF": big_tiff(),
        "heic": pictures.HEIC,
        "svg": svg(),
    }


def big_tiff() -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "Canon"
    exif[700] = xmp()
    exif.get_ifd(0x8825).update({1: "N", 2: (47.0, 33.0, 28.1234567), 0x1B: b"ASCII\0\0\0" + TOWN})
    return pictures.encode("TIFF", exif=exif, big_tiff=True)


FILES = files()


def pixels(data: bytes) -> bytes:
    """Returns the pixels of all frames or pages."""
    if data[4:12] == b"ftypheic":
        return bytes(pi_heif.open_heif(io.BytesIO(data)).to_pillow().tobytes())
    if data.startswith(b"<?xml"):
        return bytes(vips(data).write_to_memory())
    with Image.open(io.BytesIO(data)) as image:
        return b"".join(frame.convert("RGBA").tobytes() for frame in ImageSequence.Iterator(image))


def find_marks(data: bytes) -> list[bytes]:
    """Returns the marks of locations that are in the bytes."""
    marks = [TOWN, TOWN.hex().encode(), b"XQZ", b"47,33.4687N"]
    for order in "<>":
        of_geo_tiff, of_heic = struct.pack(order + "d", 47.123456), struct.pack(order + "IIII", 33, 1, 30, 1)
        marks += [struct.pack(order + "II", *SECONDS), of_geo_tiff, of_heic]
    return [mark for mark in marks if mark in data]


# What goes, and what stays


@pytest.mark.parametrize("name", FILES)
def test_location_is_removed_and_pixels_stay(strip: Strip, name: str) -> None:
    data = FILES[name]
    assert find_marks(data) or "GPS" in str(probed(data))
    clean = strip(data)
    assert find_marks(clean) == []
    assert pixels(clean) == pixels(data)
    assert strip(clean) == clean


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith(("gif", "svg", "tiff, BigTIFF"))])
def test_other_tags_stay(strip: Strip, name: str) -> None:
    data = FILES[name]
    before, after = probed(data), probed(strip(data))
    assert any(tag.startswith("GPS") for tag in before)
    assert after == {tag: value for tag, value in before.items() if not tag.startswith("GPS")}
    assert after["Make"] in {"Canon", "Daguerre"}


def probed(data: bytes) -> dict[str, object]:
    fd = os.memfd_create("picture")
    try:
        os.write(fd, data)
        return imaging.probe(f"/proc/self/fd/{fd}", max_pixels=1_000_000).exif
    finally:
        os.close(fd)


@pytest.mark.parametrize("order", "<>")
def test_exif_readers_accept_the_patched_block(strip: Strip, order: str) -> None:
    """Pillow, libexif and our reader find the entries after the removed one, and those of the thumbnail."""
    data = hostile_pictures.jpeg_with(hostile_pictures.segment(0xE1, b"Exif\0\0" + exif_block(order)))
    clean = strip(data)

    with Image.open(io.BytesIO(clean)) as image:
        exif = image.getexif()
        photo = exif.get_ifd(0x8769)
    assert (exif[0x010F], exif[0x0112], 0x8825 in exif) == ("Canon", 6, False)
    assert (photo[0x9003], photo[0x927C], 0x8825 in photo) == ("2024:05:06 07:08:09", MAKER_NOTE, False)
    assert (exif.get_ifd(0x8825), exif.get_ifd(0xA005)[1]) == ({}, "R98")

    fields = {field: image.get(field) for image in [vips(clean)] for field in image.get_fields()}
    assert fields["exif-ifd0-Make"].startswith("Canon")
    assert fields["exif-ifd0-XPTitle"].startswith("Lake")
    assert fields["exif-ifd2-DateTimeOriginal"].startswith("2024:05:06 07:08:09")
    assert not [field for field in fields if "GPS" in field or field.startswith("exif-ifd3")]
    assert [field for field in vips(data).get_fields() if field.startswith("exif-ifd3-GPS")]

    block = fields["exif-data"][6:]
    assert read_exif(block)["XPTitle"] == "Lake"
    (entries,) = struct.unpack_from(order + "H", block, 8)
    (thumbnail,) = struct.unpack_from(order + "I", block, 10 + 12 * entries)
    assert struct.unpack_from(order + "HHHIHHI", block, thumbnail) == (1, 0x0103, 3, 1, 6, 0, 0)
    assert MAKER_NOTE in clean
    assert clean.index(MAKER_NOTE) == data.index(MAKER_NOTE)  # which has offsets of its own


def vips(data: bytes) -> pyvips.Image:
    return pyvips.Image.new_from_buffer(data, "")


@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "avif", "tiff"])
def test_xmp_readers_find_an_empty_packet(strip: Strip, name: str) -> None:
    with Image.open(io.BytesIO(strip(FILES[name]))) as image:
        packet = image.tag_v2[700] if isinstance(image, TiffImageFile) else image.info["xmp"]
    assert [element.tag.rpartition("}")[2] for element in ElementTree.fromstring(packet).iter()] == ["xmpmeta", "RDF"]


@pytest.mark.parametrize("name", text_chunks())
def test_png_text_is_emptied_with_its_checksum(strip: Strip, name: str) -> None:
    clean = strip(with_chunks(pictures.encode("PNG"), text_chunks()[name]))
    assert all(zlib.crc32(kind + body) == checksum for kind, body, checksum in chunks(clean))
    with Image.open(io.BytesIO(clean)) as image:
        image.load()
        assert not any(TOWN.decode() in str(value) or "47" in str(value) for value in image.info.values())
    kinds = [kind for kind, *_ in chunks(clean)]
    assert kinds[1] in {b"tEXt", b"iTXt"}
    assert find_marks(clean) == []


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    at = 8
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        yield kind, data[at + 8 : at + 8 + size], struct.unpack_from(">I", data, at + 8 + size)[0]
        at += 12 + size


def test_png_checksums_are_updated(strip: Strip) -> None:
    assert all(zlib.crc32(kind + body) == checksum for kind, body, checksum in chunks(strip(FILES["png"])))


def test_iptc_keeps_other_values(strip: Strip) -> None:
    data = hostile_pictures.jpeg_with(hostile_pictures.segment(0xED, b"Photoshop 3.0\0" + RESOURCES))
    clean = strip(data)
    blank = b" " * len(TOWN)
    values = [(5, b"A lake"), *((number, blank) for number in (26, 27, 90, 92, 95)), (100, b"   "), (101, blank)]
    assert iim(*values) in clean
    assert b"the last" in clean
    assert hashlib.md5(IIM).digest() not in clean  # by which a guess at the place could be checked


@pytest.mark.parametrize(
    "name",
    [
        "exif:GPSLatitude",
        "exif:GPSAltitude",
        "photoshop:State",
        "photoshop:Country",
        "a:City",
        "Iptc4xmpCore:Location",
        "Iptc4xmpCore:CountryCode",
        "Iptc4xmpExt:LocationCreated",
        "Iptc4xmpExt:LocationShown",
        "drone-dji:GpsLongtitude",
        "drone-dji:AbsoluteAltitude",
        "xmpDM:shotLocation",
        "geo:lat",
    ],
)
def test_xmp_with_any_location_property_is_emptied(find: Find, name: str) -> None:
    for packet in (xmp(name), xmp(name).decode().encode("utf-16")):
        assert find(hostile_pictures.jpeg_with(hostile_pictures.segment(0xE1, XMP_HEAD + packet)))


@pytest.mark.parametrize("name", ["dc:title", "photoshop:Headline", "crs:Velocity", "tiff:Orientation", "dc:statement"])
def test_xmp_without_location_stays(find: Find, name: str) -> None:
    packet = xmp(name, b"The city, the country: a location, 47 N")
    assert find(hostile_pictures.jpeg_with(hostile_pictures.segment(0xE1, XMP_HEAD + packet))) == []


def test_short_xmp_packet_becomes_spaces(strip: Strip) -> None:
    packet = b"<a:City>Hidden Vale</a:City>"
    clean = strip(hostile_pictures.jpeg_with(hostile_pictures.segment(0xE1, XMP_HEAD + packet)))
    assert XMP_HEAD + b" " * len(packet) in clean


def plain() -> dict[str, bytes]:
    block = pictures.exif_block(
        [pictures.ascii_entry(0x010F, b"Canon")], [pictures.ascii_entry(0x9003, b"2024:05:06 07:08:09")]
    )
    packet = xmp("dc:title")
    texts = [
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(packet)),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile(block))),
        (b"zTXt", b"Raw profile type iptc\0\0" + zlib.compress(profile(iim((5, b"A lake"))))),
        (b"tEXt", b"Title\0A city"),
    ]
    return pictures.every_format() | {
        "heic": pictures.HEIC.replace(b"\x88\x25\0\4", b"\x88\x26\0\4"),
        "jpeg, tags": hostile_pictures.jpeg_with(
            hostile_pictures.segment(0xE1, b"Exif\0\0" + block),
            hostile_pictures.segment(0xE1, XMP_HEAD + packet),
            hostile_pictures.segment(0xED, b"Photoshop 3.0\0" + resource_block(0x0404, iim((5, b"A lake")))),
        ),
        "png, tags": with_chunks(pictures.encode("PNG"), (b"eXIf", block), *texts),
        "webp, tags": pictures.encode("WEBP", exif=block, xmp=packet),
        "avif, tags": pictures.encode("AVIF", speed=10, exif=block, xmp=packet),
        "tiff, tags": pictures.encode("TIFF", tiffinfo={0x010F: "Canon", 700: packet}),
        "gif, XMP": with_gif_xmp(packet),
        "svg, RDF": svg().replace(b"photoshop:City", b"dc:title"),
        "no picture": b"GPS",
        "empty": b"",
    }


PLAIN = plain()


@pytest.mark.parametrize("name", PLAIN)
def test_file_without_location_has_no_patches(find: Find, name: str) -> None:
    assert find(PLAIN[name]) == []


def test_location_of_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        find_locations(str(tmp_path / "none"))


# Containers in unusual shapes


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


def box(kind: bytes, *bodies: bytes) -> bytes:
    body = b"".join(bodies)
    return struct.pack(">I", 8 + len(body)) + kind + body


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
    assert ElementTree.fromstring(clean.removeprefix(declaration).encode())


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


# Hostile files


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


@pytest.mark.parametrize("name", bombs())
def test_location_removal_is_bounded(find: Find, name: str) -> None:
    data = bombs()[name]()
    began = time.process_time()
    patches = find(data)
    took = time.process_time() - began
    patched(data, patches)
    assert took < 3
