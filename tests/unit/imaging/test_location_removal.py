"""The removal of locations from picture files, which changes nothing else."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from tests.support import hostile_pictures, pictures
from tests.support.imaging import Find, Strip
from tests.support.locations import (
    FILES,
    IIM,
    MAKER_NOTE,
    RESOURCES,
    TOWN,
    XMP_HEAD,
    exif_block,
    find_marks,
    iim,
    pixels,
    probed,
    profile,
    resource_block,
    svg,
    text_chunks,
    vips,
    with_chunks,
    with_gif_xmp,
    xmp,
)
from worker.imaging.exif import read_exif
from worker.imaging.operations import find_locations


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
