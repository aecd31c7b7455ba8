"""EXIF at every place of a file: its values, the applied orientation, and the removal of locations."""

from __future__ import annotations

import io
import struct
import time
import zlib
from pathlib import Path

import pytest
from PIL import Image

from tests.support import hostile_pictures, pictures
from tests.support.imaging import ProbeBytes, RenderBytes
from tests.support.locations import profile, with_chunks
from tests.support.pictures import BLUE, GREEN, RED, WHITE, Entry, ascii_entry, encode, exif_block, rationals
from worker.imaging.exif import read_exif
from worker.imaging.operations import find_locations

ORIENTATION, EXPOSURE_TIME, TAKEN_AT = 0x0112, 0x829A, 0x9003
MAKE = ascii_entry(0x010F, b"Daguerre")
# The corners as displayed, clockwise from the top left, by the definition of each orientation.
CORNERS = {
    1: (RED, GREEN, WHITE, BLUE),
    2: (GREEN, RED, BLUE, WHITE),
    3: (WHITE, BLUE, RED, GREEN),
    4: (BLUE, WHITE, GREEN, RED),
    5: (RED, BLUE, WHITE, GREEN),
    6: (BLUE, RED, GREEN, WHITE),
    7: (WHITE, GREEN, RED, BLUE),
    8: (GREEN, WHITE, BLUE, RED),
}


@pytest.fixture
def max_pixels() -> int:
    return 1_000_000


def short(tag: int, value: int, order: str = "<") -> Entry:
    return tag, 3, 1, struct.pack(order + "H", value)


def block(orientation: int = 6, order: str = "<") -> bytes:
    gps = [(1, 2, 2, b"N\0"), rationals(2, (47, 1), (33, 1), (281_234_567, 10_000_000), order=order)]
    return exif_block([MAKE, short(ORIENTATION, orientation, order)], gps=gps, order=order)


def late(kind: bytes, contents: bytes) -> bytes:
    """Returns a PNG with a chunk after its pixels."""
    data = encode("PNG")
    return data[:-12] + pictures.chunk(kind, contents) + data[-12:]


def packed(keyword: bytes, exif: bytes, name: bytes = b"exif") -> tuple[bytes, bytes]:
    return b"zTXt", keyword + b"\0\0" + zlib.compress(profile(exif, name))


def png_places(exif: bytes) -> dict[str, bytes]:
    """Returns PNGs with this block, by its place."""
    headed, png = b"Exif\0\0" + exif, encode("PNG")
    exif_keyword, app1_keyword = b"Raw profile type exif", b"Raw profile type APP1"
    return {
        "eXIf": with_chunks(png, (b"eXIf", exif)),
        "eXIf, headed": with_chunks(png, (b"eXIf", headed)),
        "eXIf behind the pixels": late(b"eXIf", exif),
        "eXIf behind a broken one": with_chunks(png, (b"eXIf", b"nothing"), (b"eXIf", exif)),
        "zTXt": with_chunks(png, packed(exif_keyword, headed)),
        "zTXt behind the pixels": late(*packed(app1_keyword, headed, b"APP1")),
        "zTXt of no head": with_chunks(png, packed(exif_keyword, exif)),
        "tEXt": with_chunks(png, (b"tEXt", exif_keyword + b"\0" + profile(headed))),
        "tEXt, two words": with_chunks(png, (b"tEXt", exif_keyword + b"\0" + profile(headed, b"generic profile"))),
        "tEXt, upper case": with_chunks(png, (b"tEXt", app1_keyword + b"\0" + profile(headed).upper())),
        "iTXt": with_chunks(png, (b"iTXt", exif_keyword + b"\0\0\0en\0\0" + profile(headed))),
        "iTXt, packed": with_chunks(png, (b"iTXt", app1_keyword + b"\0\1\0\0\0" + zlib.compress(profile(headed)))),
        "behind XMP": with_chunks(
            png, packed(app1_keyword, b"http://ns.adobe.com/xap/1.0/\0<x/>"), packed(app1_keyword, headed)
        ),
    }


def jpeg_places(exif: bytes) -> dict[str, bytes]:
    """Returns JPEGs with this block, by its place."""
    headed = b"Exif\0\0" + exif
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x/>"
    return {
        "alone": jpeg_with(headed),
        "behind XMP": jpeg_with(xmp, headed),
        "in front of another": jpeg_with(headed, b"Exif\0\0" + exif_block([ascii_entry(0x0131, b"Editor")])),
        "a head of 0xFF": jpeg_with(b"Exif\0\xff" + exif),
        "in two segments": jpeg_with(headed[:40], b"Exif\0\0" + headed[40:]),
    }


def jpeg_with(*app1: bytes) -> bytes:
    return hostile_pictures.jpeg_with(*(hostile_pictures.segment(0xE1, body) for body in app1))


def corners_of(image: Image.Image) -> list[object]:
    right, bottom = image.width - 5, image.height - 5
    return [image.convert("RGB").getpixel(at) for at in ((4, 4), (right, 4), (right, bottom), (4, bottom))]


def near(colour: object, expected: tuple[int, int, int], by: int = 40) -> bool:
    return isinstance(colour, tuple) and max(abs(a - b) for a, b in zip(colour, expected, strict=True)) <= by


def assert_turned(image: Image.Image, orientation: int) -> None:
    assert (image.width > image.height) == (orientation < 5)
    assert all(map(near, corners_of(image), CORNERS[orientation]))


# Where EXIF stands


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("place", png_places(b""))
def test_png_exif_is_read_anywhere(probe: ProbeBytes, render: RenderBytes, place: str, order: str) -> None:
    data = png_places(block(order=order))[place]
    result = probe(data)
    assert (result.width, result.height, result.orientation) == (64, 96, 6)
    assert (result.exif["Make"], result.exif["Orientation"]) == ("Daguerre", 6)
    assert result.exif["GPSLatitude"] == pytest.approx(47.5578121)
    assert_turned(Image.open(io.BytesIO(result.mini_preview)), 6)
    rendition = render(data, "jpeg", metadata="keep")
    assert_turned(rendition, 6)
    assert dict(rendition.getexif()) == {0x010F: "Daguerre", ORIENTATION: 1}


@pytest.mark.parametrize("orientation", CORNERS)
def test_late_png_orientation_is_applied_once(probe: ProbeBytes, render: RenderBytes, orientation: int) -> None:
    data = late(b"eXIf", block(orientation))
    assert probe(data).orientation == orientation
    assert_turned(Image.open(io.BytesIO(probe(data).mini_preview)), orientation)
    assert_turned(render(data), orientation)


def test_png_chunk_wins_over_a_profile(probe: ProbeBytes) -> None:
    data = with_chunks(encode("PNG"), packed(b"Raw profile type exif", block(3)), (b"eXIf", block(6)))
    assert (probe(data).orientation, probe(data).exif["Orientation"]) == (6, 6)


@pytest.mark.parametrize(
    "contents",
    [
        b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n8\nno digits"),
        b"Raw profile type exif\0\0" + zlib.compress(profile(block()))[:40],
        b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n8\n" + b"0" * 30_000_000),
        b"Raw profile type exif\0\0hello",
        b"Raw profile type exif",
        b"Raw profile type iptc\0\0" + zlib.compress(profile(block())),
    ],
)
def test_png_profile_without_exif_is_skipped(probe: ProbeBytes, contents: bytes) -> None:
    began = time.process_time()
    result = probe(with_chunks(encode("PNG"), *[(b"zTXt", contents)] * 3))
    assert (result.orientation, result.exif) == (1, {})
    assert time.process_time() - began < 2


@pytest.mark.parametrize("place", jpeg_places(b""))
def test_jpeg_exif_is_read_anywhere(probe: ProbeBytes, render: RenderBytes, place: str) -> None:
    data = jpeg_places(block())[place]
    result = probe(data)
    assert (result.orientation, result.exif["Make"], result.exif["Orientation"]) == (6, "Daguerre", 6)
    assert result.exif["GPSLatitude"] == pytest.approx(47.5578121)
    assert render(data, "jpeg", metadata="keep").getexif()[0x010F] == "Daguerre"


def test_first_exif_block_of_a_jpeg_decides(probe: ProbeBytes) -> None:
    """As in browsers. The API shows the values of all blocks, like ExifTool."""
    result = probe(jpeg_with(b"Exif\0\0" + exif_block([MAKE]), b"Exif\0\0" + block(6)))
    assert result.orientation == 1
    assert list(result.exif)[:2] == ["Make", "Orientation"]


@pytest.mark.parametrize("head", [b"", b"Exif\0\0"])
@pytest.mark.parametrize("orientation", CORNERS)
def test_webp_exif_is_read_with_and_without_head(
    probe: ProbeBytes, render: RenderBytes, head: bytes, orientation: int
) -> None:
    picture = encode("WEBP", exif=b"Exif\0\0" + block(orientation))
    at = picture.index(b"EXIF")
    exif = head + block(orientation)
    data = picture[:at] + b"EXIF" + struct.pack("<I", len(exif)) + exif + bytes(len(exif) % 2)
    data = data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
    result = probe(data)
    assert (result.orientation, result.exif["Orientation"]) == (orientation, orientation)
    assert_turned(Image.open(io.BytesIO(result.mini_preview)), orientation)
    assert_turned(render(data), orientation)


# What the container turns


def avif(orientation: int, exif_orientation: int, *, swap_properties: bool = False) -> bytes:
    """Returns an AVIF turned by `irot` and `imir`.

    Its encoder removes the orientation from EXIF, so another tag is renamed to it.
    """
    exif = Image.Exif()
    exif[ORIENTATION], exif[0x0213] = orientation, exif_orientation
    data = bytearray(encode("AVIF", exif=exif.tobytes(), speed=10))
    at = data.index(struct.pack(">HHI", 0x0213, 3, 1))
    data[at : at + 2] = struct.pack(">H", ORIENTATION)
    if swap_properties:  # of the two associations the last ones
        end = data.index(b"ipma") - 4 + int.from_bytes(data[data.index(b"ipma") - 4 :][:4])
        data[end - 2 : end] = data[end - 2 : end][::-1]
    return bytes(data)


@pytest.mark.parametrize("orientation", CORNERS)
def test_avif_orientation_is_the_applied_one(probe: ProbeBytes, render: RenderBytes, orientation: int) -> None:
    result = probe(avif(orientation, 8))
    assert (result.orientation, result.exif["Orientation"]) == (orientation, 8)
    assert (result.width, result.height) == ((96, 64) if orientation < 5 else (64, 96))
    assert_turned(Image.open(io.BytesIO(result.mini_preview)), orientation)
    assert_turned(render(avif(orientation, 8)), orientation)


def test_avif_properties_apply_in_their_order(probe: ProbeBytes) -> None:
    data = avif(5, 1, swap_properties=True)
    assert data != avif(5, 1)
    result = probe(data)
    assert result.orientation == 7
    assert_turned(Image.open(io.BytesIO(result.mini_preview)), 7)


# Which directory a tag stands in


def test_photo_tags_of_the_first_directory_are_read(probe: ProbeBytes, render: RenderBytes) -> None:
    taken = ascii_entry(TAKEN_AT, b"2024:08:19 06:12:41")
    data = jpeg_with(b"Exif\0\0" + exif_block([MAKE, rationals(EXPOSURE_TIME, (1, 250)), taken]))
    assert probe(data).exif == {"Make": "Daguerre", "ExposureTime": 0.004, "DateTimeOriginal": "2024:08:19 06:12:41"}
    exif = render(data, "jpeg", metadata="keep").getexif()
    assert exif[0x010F] == "Daguerre"
    assert exif.get_ifd(0x8769) == {EXPOSURE_TIME: 1 / 250, TAKEN_AT: "2024:08:19 06:12:41"}


def test_image_tags_of_the_exif_directory_are_read(probe: ProbeBytes, render: RenderBytes) -> None:
    photo = [MAKE, short(ORIENTATION, 6), rationals(EXPOSURE_TIME, (1, 250))]
    data = jpeg_with(b"Exif\0\0" + exif_block([], photo))
    assert probe(data).exif == {"Make": "Daguerre", "Orientation": 6, "ExposureTime": 0.004}
    assert probe(data).orientation == 6
    exif = render(data, "jpeg", metadata="keep").getexif()
    assert (exif[0x010F], exif[ORIENTATION], exif.get_ifd(0x8769)) == ("Daguerre", 1, {EXPOSURE_TIME: 1 / 250})


def test_tag_of_its_own_directory_wins() -> None:
    first = [short(ORIENTATION, 6), rationals(EXPOSURE_TIME, (1, 3))]
    exif = read_exif(exif_block(first, [short(ORIENTATION, 8), rationals(EXPOSURE_TIME, (1, 4))]))
    assert exif == {"Orientation": 6, "ExposureTime": 0.25}


@pytest.mark.parametrize("order", ["<", ">"])
def test_big_tiff_exif_is_read(probe: ProbeBytes, render: RenderBytes, order: str) -> None:
    data = big_tiff(order)
    result = probe(data)
    assert (result.orientation, result.width, result.height) == (6, 1, 2)
    exif = {name: result.exif[name] for name in ("Make", "Orientation", "ExposureTime", "Copyright", "Rating")}
    assert exif == {
        "Make": "Daguerre",
        "Orientation": 6,
        "ExposureTime": 0.004,
        "Copyright": "A text of more than eight",
        "Rating": 2**40,
    }
    kept = render(data, "jpeg", metadata="keep").getexif()
    assert (kept[0x010F], kept.get_ifd(0x8769)) == ("Daguerre", {EXPOSURE_TIME: 1 / 250})
    assert render(data, "jpeg", metadata="copyright").getexif()[0x8298] == "A text of more than eight"


def big_tiff(order: str) -> bytes:
    """Returns a grey BigTIFF of 2 x 1, with 32-bit pointers to the directories of EXIF and GPS."""
    values = {256: 2, 257: 1, 258: 8, 259: 1, 262: 1, 273: 16, 274: 6, 277: 1, 278: 1, 279: 2}
    own = [(tag, 3, 1, struct.pack(order + "H", value)) for tag, value in values.items()]
    rights = b"A text of more than eight\0"
    own += [(0x010F, 2, 9, b"Daguerre\0"), (0x4746, 16, 1, struct.pack(order + "Q", 2**40))]
    exif_start = 24 + 16 + 20 * (len(own) + 3)
    gps_start = exif_start + 16 + 20
    outside_at = gps_start + 16 + 2 * 20
    own += [(0x8298, 2, len(rights), rights), (0x8769, 13, 1, struct.pack(order + "I", exif_start))]
    own += [(0x8825, 4, 1, struct.pack(order + "I", gps_start))]
    outside = b""

    def pack(tag: int, kind: int, count: int, value: bytes) -> bytes:
        nonlocal outside
        if len(value) > 8:
            value, outside = struct.pack(order + "Q", outside_at + len(outside)), outside + value
        return struct.pack(order + "HHQ", tag, kind, count) + value.ljust(8, b"\0")

    directory = struct.pack(order + "Q", len(own)) + b"".join(pack(*entry) for entry in sorted(own)) + bytes(8)
    exposure = pack(EXPOSURE_TIME, 5, 1, struct.pack(order + "II", 1, 250))
    exif = struct.pack(order + "Q", 1) + exposure + bytes(8)
    latitude = struct.pack(order + "6I", 47, 1, 33, 1, 281_234_567, 10_000_000)
    gps = struct.pack(order + "Q", 2) + pack(1, 2, 2, b"N\0") + pack(2, 5, 3, latitude) + bytes(8)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HHHQ", 43, 8, 0, 24)
    return head + b"\x10\xf0".ljust(8, b"\0") + directory + exif + gps + outside


# Removal of locations


BIG_TIFFS = {"BigTIFF, little endian": big_tiff("<"), "BigTIFF, big endian": big_tiff(">")}


@pytest.mark.parametrize("place", [*png_places(b""), *jpeg_places(b""), *BIG_TIFFS])
def test_location_is_removed_wherever_exif_is_read(probe: ProbeBytes, tmp_path: Path, place: str) -> None:
    data = bytearray((png_places(block()) | jpeg_places(block()) | BIG_TIFFS)[place])
    assert "GPSLatitude" in probe(bytes(data)).exif
    for offset, new in find_locations(str(tmp_path / "picture")):
        data[offset : offset + len(new)] = new
    assert not any(name.startswith("GPS") for name in probe(bytes(data)).exif)
