"""EXIF as the API shows it."""

from __future__ import annotations

import json
import math
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from service.images.probe import MAX_EXIF_BYTES
from tests.support import pictures
from tests.support.imaging import ProbeBytes
from worker.imaging.exif import read_exif

SAMPLES = pictures.every_format()


def degrees(ref: bytes, *parts: tuple[int, int], tag: int, order: str = "<") -> list[pictures.Entry]:
    return [(tag - 1, 2, 2, ref + b"\0"), pictures.rationals(tag, *parts, order=order)]


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_values_have_json_types(order: str) -> None:
    def short(tag: int, *values: int) -> pictures.Entry:
        return tag, 3, len(values), struct.pack(f"{order}{len(values)}H", *values)

    block = pictures.exif_block(
        [pictures.ascii_entry(0x010F, b"Canon  "), short(0x0112, 6)],
        photo=[
            pictures.rationals(0x829A, (1, 250), order=order),
            pictures.rationals(0x829D, (28, 10), order=order),
            short(0x8827, 200),
            (0x9000, 7, 4, b"0232"),
            pictures.ascii_entry(0x9003, b"2024:05:06 07:08:09"),
            (0x9101, 7, 4, b"\1\2\3\0"),
            pictures.rationals(0x9204, (-1, 3), order=order, signed=True),
            pictures.rationals(0x920A, (50, 1), order=order),
            (0x927C, 7, 40, bytes(40)),
            (0x9286, 7, 13, b"ASCII\0\0\0hello"),
            (0xA300, 7, 1, b"\3"),
            pictures.rationals(0xA432, (24, 1), (70, 1), (28, 10), (28, 10), order=order),
        ],
        gps=[
            (0, 1, 4, b"\2\3\0\0"),
            *degrees(b"S", (33, 1), (51, 1), (3150, 100), tag=2, order=order),
            *degrees(b"E", (151, 1), (1234, 100), (0, 1), tag=4, order=order),
            (5, 1, 1, b"\1"),
            pictures.rationals(6, (25, 2), order=order),
            pictures.rationals(7, (7, 1), (8, 1), (95, 10), order=order),
        ],
        order=order,
    )
    result = read_exif(block)
    assert result == {
        "Make": "Canon",
        "Orientation": 6,
        "ExposureTime": 0.004,
        "FNumber": 2.8,
        "PhotographicSensitivity": 200,
        "ExifVersion": "0232",
        "DateTimeOriginal": "2024:05:06 07:08:09",
        "ComponentsConfiguration": [1, 2, 3, 0],
        "ExposureBiasValue": -0.3333333333,
        "FocalLength": 50,
        "UserComment": "hello",
        "FileSource": 3,
        "LensSpecification": [24, 70, 2.8, 2.8],
        "GPSVersionID": [2, 3, 0, 0],
        "GPSLatitudeRef": "S",
        "GPSLatitude": -33.85875,
        "GPSLongitudeRef": "E",
        "GPSLongitude": 151.2056666667,
        "GPSAltitudeRef": 1,
        "GPSAltitude": -12.5,
        "GPSTimeStamp": "07:08:09.5",
    }
    assert isinstance(result["FocalLength"], int)
    assert read_exif(b"Exif\0\0" + block) == result


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"a\0b", "a"),
        (b" \0", None),
        ("Zoë".encode(), "Zoë"),
        (b"Zo\xeb", "Zoë"),
        (b"\xed\xa0\x80", "í\xa0€"),
        (b"x" * 5000, "x" * 1000),
        ("é".encode() * 5000, "é" * 1000),
    ],
)
def test_exif_texts_are_clean(raw: bytes, text: str | None) -> None:
    assert read_exif(pictures.exif_block([pictures.ascii_entry(0x010F, raw)])).get("Make") == text


@pytest.mark.parametrize(
    ("order", "raw"),
    [
        ("<", b"UNICODE\0" + "grüße\ud800".encode("utf-16-le", "surrogatepass")),
        (">", b"UNICODE\0" + "grüße".encode("utf-16-be")),
        ("<", b"UNICODE\0" + "grüße".encode("utf-16")),
        ("<", bytes(8) + "grüße".encode()),
    ],
)
def test_user_comment_is_decoded_by_its_code(order: str, raw: bytes) -> None:
    block = pictures.exif_block([], photo=[(0x9286, 7, len(raw), raw)], order=order)
    assert read_exif(block) == {"UserComment": "grüße"}


def test_exif_leaves_out_invalid_numbers() -> None:
    block = pictures.exif_block(
        [(0x011A, 11, 1, struct.pack("<f", math.nan)), (0x011B, 12, 1, struct.pack("<d", math.inf))],
        photo=[
            pictures.rationals(0x829A, (1, 0)),
            pictures.rationals(0x829D, (0, 0)),
            pictures.rationals(0x920A, (5, 2)),
        ],
        gps=[
            *degrees(b"N", (0, 0), (0, 0), (0, 0), tag=2),
            *degrees(b"E", (999, 1), (0, 1), (0, 1), tag=4),
            pictures.rationals(7, (99, 1), (0, 1), (0, 1)),
        ],
    )
    assert read_exif(block) == {"FocalLength": 2.5, "GPSLatitudeRef": "N", "GPSLongitudeRef": "E"}


def test_exif_skips_a_bad_tag_only() -> None:
    block = pictures.exif_block(
        [
            (0x010F, 2, 0xFFFFFFFF, b"\xff\xff\xff\xff"),
            (0x0110, 2, 100, b"\xf0\xff\xff\x7f"),
            (0x0112, 99, 1, b"\1\0\0\0"),
            (0x0128, 3, 0, b""),
            pictures.ascii_entry(0x0131, b"kept"),
        ]
    )
    assert read_exif(block) == {"Software": "kept"}


def test_exif_directory_loops_end() -> None:
    block = struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", 3)
    for tag in (0x8769, 0x8825, 0xA005):
        block += struct.pack("<HHII", tag, 4, 1, 8)
    assert read_exif(block + struct.pack("<I", 8)) == {}


def test_exif_is_bounded_and_valid_jsonb() -> None:
    texts = [
        pictures.ascii_entry(tag, b"\xc3\xa9\x01" * 2000) for tag in (0x010D, 0x010E, 0x010F, 0x0110, 0x0131, 0x013B)
    ]
    table = (0x0214, 3, 4000, bytes(8000))
    text = json.dumps(read_exif(pictures.exif_block([*texts, table])), allow_nan=False)
    assert len(text) <= MAX_EXIF_BYTES
    assert "ReferenceBlackWhite" not in text


@pytest.mark.parametrize("seed", range(40))
def test_damaged_exif_does_no_harm(seed: int) -> None:
    block = bytearray(Image.Exif().tobytes() if seed == 0 else _typical_block())
    rolled = seed * 2654435761
    for step in range(12):
        rolled = (rolled * 6364136223846793005 + 1442695040888963407 + step) % 2**64
        if block:
            block[(rolled >> 33) % len(block)] = rolled >> 20 & 0xFF
    result = read_exif(bytes(block))
    assert "\\u0000" not in json.dumps(result, allow_nan=False)
    json.dumps(result, ensure_ascii=False).encode()


def _typical_block() -> bytes:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Canon", 1
    exif.get_ifd(0x8769).update({0x829A: 0.004, 0x9003: "2024:05:06 07:08:09", 0xA432: (24.0, 70.0, 2.8, 2.8)})
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 30.0, 0.0), 29: "2024:05:06"})
    return exif.tobytes()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_exif_is_read_in_every_container(probe: ProbeBytes, form: str) -> None:
    result = probe(pictures.encode(form, exif=_typical_block())).exif
    assert (result["Make"], result["ExposureTime"], result["GPSLatitude"]) == ("Canon", 0.004, 52.5)


def test_tiff_tags_are_read(probe: ProbeBytes) -> None:
    result = probe(pictures.encode("TIFF", tiffinfo={0x010F: "Canon", 0x013B: "Zoe"})).exif
    assert (result["Make"], result["Artist"]) == ("Canon", "Zoe")


@pytest.mark.parametrize("name", [name for name in SAMPLES if name != "heic"])
def test_picture_without_exif_has_no_tags(probe: ProbeBytes, name: str) -> None:
    result = probe(SAMPLES[name]).exif
    assert set(result) <= ({"XResolution", "YResolution", "ResolutionUnit"} if name.startswith("tiff") else set())


def _segment(marker: int, payload: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(payload) + 2).to_bytes(2, "big") + payload


@pytest.mark.parametrize("padding", [0, 2 << 20], ids=["small", "larger than is read at once"])
def test_first_exif_block_of_a_jpeg_counts(probe: ProbeBytes, padding: int) -> None:
    """Small files are decoded without their EXIF, so its segment has to be removed exactly."""
    plain = pictures.encode("JPEG")
    block = _typical_block()
    with_exif, comment = _segment(0xE1, block), _segment(0xFE, b"a comment")
    xmp = _segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>")
    other = _segment(0xE1, block.replace(b"Canon", b"Nikon"))
    frame = plain.index(b"\xff\xc0")
    scan = plain.index(b"\xff\xda")
    for data in (
        plain[:2] + comment + b"\xff" + with_exif + xmp + other + plain[2:],
        plain[:frame] + xmp + with_exif + other + plain[frame:],
        plain[:scan] + with_exif + plain[scan:],
    ):
        result = probe(data + bytes(padding))
        assert (result.exif["Make"], result.mini_preview) == ("Canon", probe(plain).mini_preview)


def _with_exif_of_length(length: int) -> bytes:
    plain, segment = pictures.encode("JPEG"), _segment(0xE1, _typical_block())
    return plain[:2] + segment[:2] + length.to_bytes(2, "big") + segment[4:] + plain[2:]


@pytest.mark.parametrize("length", [0, 1, 9])
def test_rest_of_a_short_exif_segment_is_skipped(probe: ProbeBytes, length: int) -> None:
    result = probe(_with_exif_of_length(length))
    assert (result.exif, result.mini_preview) == ({}, probe(pictures.encode("JPEG")).mini_preview)


def test_jpeg_inside_its_exif_segment_is_damaged(refusal: Callable[..., str]) -> None:
    assert refusal(_with_exif_of_length(0xFFFF)) == "damaged-image"


@pytest.mark.needs("exiftool")
def test_exif_matches_exiftool(probe: ProbeBytes, tmp_path: Path) -> None:
    data = pictures.encode("JPEG", exif=_typical_block())
    (tmp_path / "picture.jpg").write_bytes(data)
    expected = json.loads(
        subprocess.run(
            ["exiftool", "-n", "-json", str(tmp_path / "picture.jpg")], check=True, capture_output=True
        ).stdout
    )[0]
    result = probe(data).exif
    for name in ("Make", "Orientation", "ExposureTime", "DateTimeOriginal", "GPSLatitude", "GPSLatitudeRef"):
        assert result[name] == expected[name]
