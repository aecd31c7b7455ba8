"""Truncated and damaged pictures: refused at upload, and every accepted one can be rendered."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import pyvips

from service.images.probe import Rejected
from service.renditions.transformation import Transformation
from tests.support import hostile_pictures, pictures
from tests.support.imaging import ProbeBytes
from worker import imaging

MAX_PIXELS = 100_000_000
FILM = b"\0\0\0\x18ftypmp42" + bytes(200)


@pytest.fixture
def outcome(probe: ProbeBytes) -> Callable[[bytes], str]:
    """Returns the code of the refusal, or "accepted"."""

    def run(data: bytes) -> str:
        try:
            probe(data)
        except Rejected as refusal:
            return refusal.code
        return "accepted"

    return run


Outcome = Callable[[bytes], str]


# Pillow fills up the last page of a TIFF to 16 bytes, which no other encoder does.
PADDED = {"tiff, pages"}


def cuts(data: bytes, padding: int = 0) -> list[bytes]:
    """Returns the file without its last 2 bytes, and shorter ones down to a twentieth."""
    size = len(data) - padding
    lengths = {size - lost for lost in (2, 3, 4, 5, 8, 9, 13, 20, 50, 100, 300, 1000)}
    lengths |= {size * share // 60 for share in range(3, 60)}
    return [data[:length] for length in sorted(lengths) if length >= size // 20]


# JPEG


@pytest.mark.parametrize("height", [897, 900, 904, 911, 1000])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
def test_jpeg_truncated_in_its_last_rows_is_refused(outcome: Outcome, height: int, subsampling: str) -> None:
    """The preview is decoded at an eighth of the size, which has no pixel of the last rows."""
    data = pictures.encode("JPEG", pictures.landscape(320, height), subsampling=subsampling)
    for behind in (b"", FILM):
        for lost in (2, 3, 10, 60, 200):
            assert outcome(data[:-lost] + behind) == "damaged-image", (behind, lost)
        assert outcome(data + behind) == "accepted"


def test_jpeg_without_sampling_factors_is_refused(outcome: Outcome) -> None:
    data = bytearray(pictures.encode("JPEG"))
    frame = data.index(b"\xff\xc0")
    for component in range(data[frame + 9]):
        data[frame + 11 + 3 * component] = 0
    assert outcome(bytes(data)) == "damaged-image"


def test_jpeg_damaged_in_its_last_rows_is_refused(outcome: Outcome) -> None:
    data = bytearray(pictures.encode("JPEG", pictures.landscape(1600, 900)))
    data[-40:-10] = b"\xff\0" * 15  # no code that Huffman's tables have
    assert outcome(bytes(data)) == "damaged-image"


def stray(kind: str) -> bytes:
    """Returns a JPEG with its EXIF after bytes that are no segment."""
    gps = [(1, 2, 2, b"S\0"), pictures.rationals(2, (33, 1), (51, 1), (30, 1))]
    block = b"Exif\0\0" + pictures.exif_block([pictures.ascii_entry(0x010F, b"Daguerre")], gps=gps)
    data = pictures.encode("JPEG", pictures.landscape(160, 120), exif=block)
    exif_at, table_at = data.index(b"\xff\xe1"), data.index(b"\xff\xdb")
    junk = {"zeros": bytes(9), "escaped": b"\xff\0\xff\0", "text": b"junk" * 3000, "fill": b"\0\xff\xff\xff"}[kind]
    return data[:exif_at] + junk + data[exif_at:table_at] + junk + data[table_at:]


@pytest.mark.parametrize("kind", ["zeros", "escaped", "text", "fill"])
def test_stray_bytes_between_segments_are_skipped(probe: ProbeBytes, outcome: Outcome, kind: str) -> None:
    data = stray(kind)
    result = probe(data)
    assert (result.width, result.height, result.exif["Make"]) == (160, 120, "Daguerre")
    damaged = bytearray(data)
    damaged[-900:-10] = b"\xff\0" * 445
    for bad in (data[:-2], data[: len(data) // 2], bytes(damaged)):
        assert outcome(bad) == "damaged-image"


@pytest.mark.parametrize("kind", ["zeros", "escaped", "text", "fill"])
def test_location_after_stray_bytes_is_removed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "picture"
    path.write_bytes(stray(kind))
    assert imaging.find_locations(str(path))


# HEIC


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_heic_without_its_last_tiles_is_refused(outcome: Outcome, share: float) -> None:
    data = hostile_pictures.heic_grid(6, 8, 500, 380, apart=True)
    assert outcome(data) == outcome(data + FILM) == "accepted"
    tiles_at = data.index(b"mdat") + 4
    assert outcome(data[: tiles_at + int(share * (len(data) - tiles_at))]) == "damaged-image"


# TIFF


@pytest.mark.parametrize("big_tiff", [False, True])
def test_tiff_without_its_last_directory_is_refused(outcome: Outcome, big_tiff: bool) -> None:
    pages = [pictures.quarters().rotate(7 * turn) for turn in range(3)]
    data = pictures.encode("TIFF", pages[0], save_all=True, append_images=pages[1:], big_tiff=big_tiff)
    for pixel in range(20, len(data), 997):
        assert outcome(data[:-pixel]) == "damaged-image", pixel


def test_tiff_without_its_thumbnails_is_refused(outcome: Outcome) -> None:
    image = pyvips.Image.gaussnoise(600, 400).cast("uchar")
    for inside in (False, True):
        data = image.tiffsave_buffer(tile=True, pyramid=True, subifd=inside, compression="deflate")
        assert outcome(data) == "accepted"
        for lost in (2, 20, 1000, len(data) // 4):
            assert outcome(data[:-lost]) == "damaged-image", (inside, lost)


def test_tiff_with_a_stale_pointer_to_exif_is_accepted(outcome: Outcome) -> None:
    """Editors that do not know EXIF leave its pointer as it was."""
    data = pictures.encode(
        "TIFF", pictures.landscape(64, 48), exif=pictures.exif_block([], photo=[(1, 4, 1, bytes(4))])
    )
    at = data.index(struct.pack("<HHI", 0x8769, 4, 1)) + 8
    assert outcome(data[:at] + struct.pack("<I", 3000) + data[at + 4 :]) == "accepted"


# Files that take long


@cache
def endless() -> dict[str, bytes]:
    table = struct.pack("<HHII", 330, 4, 400_000, 8) + struct.pack("<HHII", 34665, 4, 1, 8)
    pages = b"".join(struct.pack("<H", 2) + table + struct.pack("<I", 8 + 30 * n) for n in range(1, 60_000))
    jpeg = pictures.encode("JPEG", progressive=True)
    return {
        "TIFF of pages with the same inner ones": b"II*\0\x08\0\0\0" + pages,
        "JPEG of markers": jpeg[:-2] + b"\xff\1" * 5_000_000 + b"\xff\xd9",
        "JPEG of escaped bytes": jpeg[:2] + b"\xff\0" * 5_000_000 + jpeg[2:],
    }


@pytest.mark.parametrize("tag", [259, 262, 273, 279, 330])
def test_tiff_with_absurd_counts_is_fast(outcome: Outcome, tag: int) -> None:
    """os.pread accepts no such size."""
    data = pictures.encode("TIFF", big_tiff=True, tiffinfo={330: (1, 2)})
    at = data.index(struct.pack("<H", tag), 16)
    for count in (2**62, 2**64 - 1, 2**31, 10**6):
        absurd = data[: at + 4] + struct.pack("<QQ", count, 2**63 + 5) + data[at + 20 :]
        assert outcome(absurd) in {"damaged-image", "unsupported-image", "accepted"}, count


def test_boxes_of_absurd_sizes_are_refused(outcome: Outcome) -> None:
    """os.pread accepts no such offset or size: 2^64."""
    for form, data in (("avif", pictures.every_format()["avif"]), ("heic", pictures.HEIC)):
        for kind in (b"ftyp", b"meta", b"iinf", b"iloc", b"mdat"):
            at = data.index(kind) - 4
            for size in (b"\xff" * 8, b"\x7f" + b"\xff" * 7, bytes(8)):
                absurd = data[:at] + b"\0\0\0\1" + kind + size + data[at + 8 :]
                assert outcome(absurd) in {"damaged-image", "unsupported-image"}, (form, kind)


@pytest.mark.parametrize("name", endless())
def test_endless_structure_is_fast(outcome: Outcome, name: str) -> None:
    began = time.process_time()
    assert outcome(endless()[name]) in {"accepted", "damaged-image", "too-many-pixels"}
    assert time.process_time() - began < 2


# WebP


def test_webp_that_hides_a_frame_is_refused(outcome: Outcome) -> None:
    """libwebp leaves out a frame whose contents it does not know, but the chunks count it."""
    data = pictures.animate("WEBP", 3)
    at = data.index(b"ANMF") + 8 + 16
    assert outcome(data[:at] + b"ABCD" + data[at + 4 :]) == "damaged-image"


# All formats


@pytest.mark.parametrize("name", pictures.every_format())
def test_truncated_picture_is_refused(outcome: Outcome, name: str) -> None:
    data = pictures.every_format()[name]
    assert outcome(data) == "accepted"
    for cut in cuts(data, padding=15 if name in PADDED else 0):
        assert outcome(cut) in {"damaged-image", "unsupported-image"}, len(data) - len(cut)


@pytest.mark.parametrize("name", [name for name in pictures.every_format() if name != "svg"])
def test_bytes_after_a_picture_are_ignored(tmp_path: Path, outcome: Outcome, name: str) -> None:
    data = pictures.every_format()[name] + FILM
    assert outcome(data) == "accepted"
    path = tmp_path / "behind"
    path.write_bytes(data)
    for form in ("webp", "png"):
        imaging.render(str(path), Transformation(format=form, quality=50), watermark=None, max_pixels=MAX_PIXELS)
