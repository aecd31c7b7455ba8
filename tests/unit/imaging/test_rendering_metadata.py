"""The metadata of renditions: what `metadata` and `keep-location` keep, and what is never kept."""

from __future__ import annotations

import itertools
import struct
from typing import Any

import pytest
from PIL import Image

from tests.support import pictures
from tests.support.imaging import RenderFile, Shown
from tests.support.pictures import RED, ascii_entry, encode, exif_block
from tests.support.renditions import FORMATS, near

GPS = [(1, 2, 2, b"N\0\0\0"), pictures.rationals(2, (52, 1), (30, 1), (0, 1))]
CAMERA = [ascii_entry(0x010F, b"Daguerre"), ascii_entry(0x013B, b"Ann Author"), ascii_entry(0x8298, b"(c) Ann")]
PHOTO = [pictures.rationals(0x829A, (1, 60)), ascii_entry(0x9003, b"2026:01:02 03:04:05"), (0x927C, 7, 8, b"MAKERNOT")]
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6">Somewhere</a></x:xmpmeta>'
ARTIST, COPYRIGHT, MAKE, ORIENTATION, EXIF_IFD, GPS_IFD = 0x013B, 0x8298, 0x010F, 0x0112, 0x8769, 0x8825


def picture_with_metadata(form: str) -> bytes:
    upright = struct.pack("<HH", 6, 0)
    block = exif_block([*CAMERA[:1], (ORIENTATION, 3, 1, upright), *CAMERA[1:]], PHOTO, GPS)
    params: dict[str, Any] = {"xmp": XMP} if form in {"JPEG", "WEBP"} else {}
    return encode(form, exif=b"Exif\0\0" + block, **params)


@pytest.mark.parametrize("target", ["jpeg", "png", "webp", "avif"])
@pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP"])
def test_metadata_parameter_selects_tags(shown: Shown, source: str, target: str) -> None:
    def metadata_of(**params: Any) -> tuple[Image.Image, Image.Exif]:
        image = shown(picture_with_metadata(source), format=target, width=32, **params)
        assert image.size == (32, 48)
        assert near(image.convert("RGB").getpixel((25, 6)), RED, 30)
        return image, image.getexif()

    image, exif = metadata_of()
    assert not exif
    assert image.info.keys().isdisjoint({"exif", "xmp", "icc_profile", "photoshop", "comment"})
    image, exif = metadata_of(metadata="copyright")
    assert dict(exif) == {ARTIST: "Ann Author", COPYRIGHT: "(c) Ann"}
    assert "xmp" not in image.info
    image, exif = metadata_of(metadata="keep")
    assert (exif[MAKE], exif[ARTIST], exif[ORIENTATION]) == ("Daguerre", "Ann Author", 1)
    assert dict(exif.get_ifd(EXIF_IFD)) == {0x829A: 1 / 60, 0x9003: "2026:01:02 03:04:05"}
    assert not exif.get_ifd(GPS_IFD)
    assert "xmp" not in image.info
    image, exif = metadata_of(metadata="keep", keep_location=True)
    assert exif.get_ifd(GPS_IFD)[2] == (52, 30, 0)
    assert exif[ORIENTATION] == 1
    if source != "PNG":
        assert image.info["xmp"].rstrip(b"\0") == XMP.replace(b'"6"', b'"1"')


def test_location_is_only_in_requested_renditions(render_file: RenderFile) -> None:
    secret = [(1, 2, 2, b"N\0\0\0"), ascii_entry(0x1D, b"2026:11:22"), ascii_entry(0x12, b"SECRET-DATUM")]
    data = encode("JPEG", exif=b"Exif\0\0" + exif_block(CAMERA, PHOTO, secret), xmp=XMP)
    for form, metadata in itertools.product(FORMATS, ("none", "copyright", "keep")):
        result = render_file(data, format=form, metadata=metadata)
        assert b"SECRET-DATUM" not in result
        assert b"Somewhere" not in result
        assert b"MAKERNOT" not in result


def test_thumbnail_is_removed(render_file: RenderFile) -> None:
    """A thumbnail is in a second directory, and shows what a crop removed."""
    thumbnail = encode("JPEG", Image.new("RGB", (16, 16)))
    block = exif_block(CAMERA)
    at = len(block)
    second = struct.pack("<HHHIIHHII", 2, 0x0201, 4, 1, at + 30, 0x0202, 4, 1, len(thumbnail)) + bytes(4)
    first_end = 8 + 2 + 12 * len(CAMERA)
    block = block[:first_end] + struct.pack("<I", at) + block[first_end + 4 :] + second + thumbnail
    data = encode("JPEG", exif=b"Exif\0\0" + block)
    assert data.count(b"\xff\xd8\xff") == 2
    for keep_location in (False, True):
        assert (
            render_file(data, format="jpeg", metadata="keep", keep_location=keep_location).count(b"\xff\xd8\xff") == 1
        )


def test_tiff_tags_are_kept(shown: Shown) -> None:
    exif = Image.Exif()
    exif[ARTIST], exif[COPYRIGHT], exif[MAKE] = "Ann Author", "(c) Ann", "Daguerre"
    image = shown(encode("TIFF", exif=exif), format="jpeg", metadata="keep")
    assert dict(image.getexif()) == {ARTIST: "Ann Author", COPYRIGHT: "(c) Ann", MAKE: "Daguerre", ORIENTATION: 1}


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"II*\0",
        b"nothing at all",
        exif_block(CAMERA)[:40],
        b"II*\0\xff\xff\xff\xff",
        exif_block(CAMERA)[:20] + bytes(90),
    ],
)
def test_broken_exif_is_left_out(shown: Shown, block: bytes) -> None:
    for metadata in ("copyright", "keep"):
        image = shown(encode("JPEG", exif=b"Exif\0\0" + block), format="jpeg", metadata=metadata)
        assert set(image.getexif()) <= {MAKE, ORIENTATION}
