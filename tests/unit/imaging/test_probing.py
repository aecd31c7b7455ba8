from __future__ import annotations

import io
import json
import math
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import pyvips
from PIL import Image

from service.images.probe import MAX_EXIF_BYTES, MIME_TYPES, Probe, Rejected
from tests.support import hostile_pictures, pictures
from tests.support.imaging import ProbeBytes
from worker import imaging
from worker.imaging.exif import read_exif
from worker.sniffing import sniff

CORPUS = Path(__file__).parents[4] / "shared" / "corpus"
needs_corpus = pytest.mark.skipif(not CORPUS.is_dir(), reason="the corpus of public test suites is not here")


@pytest.fixture(scope="module", autouse=True)
def _prepared() -> None:
    imaging.prepare()


@pytest.fixture
def refusal(probe: ProbeBytes) -> Callable[..., str]:
    def run(data: bytes, max_pixels: int = 100_000_000) -> str:
        with pytest.raises(Rejected) as caught:
            probe(data, max_pixels)
        return caught.value.code

    return run


SAMPLES = pictures.every_format()


def preview(found: Probe) -> Image.Image:
    image = Image.open(io.BytesIO(found.mini_preview))
    image.load()
    return image


def near(colour: object, expected: tuple[int, int, int], by: int = 40) -> bool:
    return isinstance(colour, tuple) and max(abs(a - b) for a, b in zip(colour, expected, strict=True)) <= by


# What a probe finds


@pytest.mark.parametrize("name", SAMPLES)
def test_every_format_is_probed(probe: ProbeBytes, name: str) -> None:
    found = probe(SAMPLES[name])
    assert found.format == name.partition(",")[0]
    assert found.format in MIME_TYPES
    size = {"heic": (32, 48), "svg": (96, 64)}.get(
        name, (96, 64) if name.endswith(("animated", "pages", "alpha")) else (160, 120)
    )
    assert (found.width, found.height) == size
    assert found.pages == (4 if name.endswith(("animated", "pages")) else 1)
    if name != "gif, animated":  # an encoder may repeat pixels of the frame before by transparent ones
        assert found.has_alpha is (name in {"png, alpha", "svg", "webp, animated"})
    assert 100 < len(found.mini_preview) <= 500


def test_probing_twice_finds_the_same(probe: ProbeBytes) -> None:
    assert probe(SAMPLES["jpeg"]) == probe(SAMPLES["jpeg"])


@pytest.mark.parametrize("name", SAMPLES)
def test_a_file_that_moves_away_meanwhile_is_probed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = tmp_path / "picture"
    path.write_bytes(SAMPLES[name])
    expected = imaging.probe(str(path), max_pixels=1_000_000)

    def sniff_and_move(head: bytes) -> str | None:
        path.rename(tmp_path / "kept")
        return sniff(head)

    monkeypatch.setattr("worker.imaging.formats.sniff", sniff_and_move)
    assert imaging.probe(str(path), max_pixels=1_000_000) == expected


def test_a_changed_file_of_the_same_name_is_read_again(probe: ProbeBytes) -> None:
    assert probe(pictures.encode("WEBP", pictures.quarters(30, 20))).width == 30
    assert probe(pictures.encode("WEBP", pictures.quarters(50, 20))).width == 50


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_applied_to_size_and_preview(probe: ProbeBytes, form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"tiffinfo": {0x0112: orientation}} if form == "TIFF" else {"exif": exif.tobytes()}
    found = probe(pictures.encode(form, **options))
    assert found.orientation == orientation
    assert found.exif["Orientation"] == orientation
    assert (found.width, found.height) == ((96, 64) if orientation < 5 else (64, 96))
    shown = preview(found)
    assert shown.size == ((48, 32) if orientation < 5 else (32, 48))
    # The corners as displayed, clockwise from the top left, by the definition of each value.
    red, green, white, blue = pictures.RED, pictures.GREEN, pictures.WHITE, pictures.BLUE
    expected = {
        1: (red, green, white, blue),
        2: (green, red, blue, white),
        3: (white, blue, red, green),
        4: (blue, white, green, red),
        5: (red, blue, white, green),
        6: (blue, red, green, white),
        7: (white, green, red, blue),
        8: (green, white, blue, red),
    }[orientation]
    right, bottom = shown.width - 5, shown.height - 5
    corners = [shown.getpixel(at) for at in ((4, 4), (right, 4), (right, bottom), (4, bottom))]
    assert all(near(corner, colour) for corner, colour in zip(corners, expected, strict=True))


def test_an_orientation_beyond_the_standard_is_none(probe: ProbeBytes) -> None:
    exif = Image.Exif()
    exif[0x0112] = 9
    assert probe(pictures.encode("JPEG", exif=exif.tobytes())).orientation == 1


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_a_tiff_whose_orientation_is_none_is_upright(probe: ProbeBytes, order: str, orientation: int) -> None:
    data = bytearray(pictures.encode("TIFF", tiffinfo={0x0112: 6}))
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    assert data.count(entry) == 1
    at = data.index(entry)
    data[at : at + 12] = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    if order == ">":
        data = bytearray(pictures.exif_block(_grey_pixel(orientation), order=">"))
    found = probe(bytes(data))
    assert found.orientation == 1
    assert (found.width, found.height) == ((96, 64) if order == "<" else (1, 1))


def _grey_pixel(orientation: int) -> list[pictures.Entry]:
    own = {256: 1, 257: 1, 258: 8, 259: 1, 262: 1, 273: 0, 274: orientation, 277: 1, 278: 1, 279: 1}
    return [(tag, 3, 1, struct.pack(">HH", value, 0)) for tag, value in own.items()]


def test_heic_is_turned_once_by_its_container(probe: ProbeBytes) -> None:
    found = probe(pictures.HEIC)
    assert (found.width, found.height, found.orientation) == (32, 48, 6)
    assert found.exif["Orientation"] == 6
    assert found.exif["Make"] == "Daguerre"
    assert found.exif["GPSLatitude"] == -33.5
    shown = preview(found)
    top_right, bottom_left = shown.getpixel((30, 2)), shown.getpixel((2, 45))
    assert isinstance(top_right, tuple)
    assert isinstance(bottom_left, tuple)
    # Turned clockwise: red grows downwards, green to the left.
    assert top_right[0] < 80 > top_right[1]
    assert bottom_left[0] > 170 < bottom_left[1]


def test_an_apng_counts_its_default_image(probe: ProbeBytes) -> None:
    first, *rest = pictures.frames(3)
    data = pictures.encode("PNG", first, save_all=True, append_images=rest, default_image=True)
    assert probe(data).pages == 3


def test_tiff_pages_of_different_sizes_are_read(probe: ProbeBytes, refusal: Callable[..., str]) -> None:
    data = pictures.encode(
        "TIFF", pictures.quarters(), save_all=True, append_images=[pictures.quarters(30, 40), pictures.quarters(9, 9)]
    )
    found = probe(data)
    assert (found.width, found.height, found.pages) == (96, 64, 3)
    assert refusal(data[:-100]) == "damaged-image"


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        (b'width="40" height="20"', (40, 20)),
        (b'width="1in" height="48pt"', (96, 64)),
        (b'viewBox="0 0 300 150"', (300, 150)),
        (b'width="100%" height="100%" viewBox="0 0 300 150"', (300, 150)),
        (b'width="3000" viewBox="0 0 300 150"', (3000, 1500)),
    ],
)
def test_svg_sizes_are_css_pixels(probe: ProbeBytes, attributes: bytes, size: tuple[int, int]) -> None:
    found = probe(b'<svg xmlns="http://www.w3.org/2000/svg" %s><rect width="9" height="9"/></svg>' % attributes)
    assert (found.width, found.height) == size


# What is refused


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"hello",
        b"BM" + bytes(100),
        b"\x1f\x8b\x08" + bytes(100),
        b"<html><body><svg/></body></html>",
        b"%PDF-1.7",
        b"\0\0\0\x14ftypisom\0\0\0\0mp42",
        bytes(5000),
    ],
)
def test_other_files_are_unsupported(refusal: Callable[..., str], data: bytes) -> None:
    assert refusal(data) == "unsupported-image"


@pytest.mark.parametrize("name", SAMPLES)
def test_a_truncated_picture_is_damaged(refusal: Callable[..., str], name: str) -> None:
    data = SAMPLES[name]
    shortest = 100 if name == "svg" else 40
    cuts = {shortest, *(len(data) * share // 100 for share in (10, 25, 50, 75, 90, 99)), len(data) - 6}
    if not name.startswith("tiff"):  # a TIFF may end with the offset of no next page
        cuts |= {len(data) - 2}
    for cut in sorted(cut for cut in cuts if cut >= shortest):
        assert refusal(data[:cut]) == "damaged-image", f"cut to {cut} of {len(data)} bytes"


@pytest.mark.parametrize("name", [name for name in SAMPLES if name != "svg"])
def test_bytes_behind_a_complete_picture_do_not_matter(probe: ProbeBytes, name: str) -> None:
    assert probe(SAMPLES[name] + b"and then some") == probe(SAMPLES[name])


def test_a_gif_may_lack_its_end_mark(probe: ProbeBytes) -> None:
    assert probe(SAMPLES["gif, animated"][:-1]).pages == 4


def test_a_truncated_jpeg_with_an_end_mark_is_damaged(refusal: Callable[..., str]) -> None:
    data = SAMPLES["jpeg"]
    assert refusal(data[: len(data) // 2] + b"\xff\xd9") == "damaged-image"


def test_stray_bytes_before_a_jpeg_marker_are_a_habit_of_cameras(probe: ProbeBytes) -> None:
    data = SAMPLES["jpeg"]
    assert probe(data[:-2] + b"\0\0\0" + data[-2:]).width == 160


def test_a_png_with_a_wrong_checksum_is_damaged(refusal: Callable[..., str]) -> None:
    data = bytearray(SAMPLES["png"])
    data[len(data) // 2] ^= 0xFF
    assert refusal(bytes(data)) == "damaged-image"


def test_too_many_pixels_are_refused_by_the_header(refusal: Callable[..., str]) -> None:
    assert refusal(pictures.png_header(30_000, 30_000)) == "too-many-pixels"
    assert refusal(pictures.png_header(2**31 - 1, 1), 1_000_000) == "too-many-pixels"
    jpeg = bytearray(SAMPLES["jpeg"])
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    assert refusal(bytes(jpeg)) == "too-many-pixels"
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="30000" height="30000"/>'
    assert refusal(svg) == "too-many-pixels"


@pytest.mark.parametrize("name", SAMPLES)
def test_pages_count_towards_the_limit(probe: ProbeBytes, refusal: Callable[..., str], name: str) -> None:
    found = probe(SAMPLES[name])
    pixels = found.width * found.height * found.pages
    assert probe(SAMPLES[name], pixels) == found
    assert refusal(SAMPLES[name], pixels - 1) == "too-many-pixels"


def test_a_jpeg_of_nothing_but_fill_bytes_is_given_up(refusal: Callable[..., str]) -> None:
    assert refusal(b"\xff\xd8" + b"\xff" * 2_000_000) == "damaged-image"


def test_an_svg_reads_no_other_file(probe: ProbeBytes, tmp_path: Path) -> None:
    (tmp_path / "near.png").write_bytes(pictures.encode("PNG", Image.new("RGB", (9, 9))))
    for link in ("near.png", (tmp_path / "near.png").as_uri(), "http://127.0.0.1:9/near.png"):
        image = f'<image href="{link}" width="9" height="9"/>'
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9">{image}</svg>'
        assert preview(probe(svg.encode())).convert("L").getextrema() == (255, 255)


def test_svg_entities_do_not_explode(refusal: Callable[..., str]) -> None:
    entities = "".join(f'<!ENTITY e{i + 1} "{f"&e{i};" * 10}">' for i in range(9))
    svg = (
        f'<!DOCTYPE svg [<!ENTITY e0 "lol">{entities}]><svg xmlns="http://www.w3.org/2000/svg"><text>&e9;</text></svg>'
    )
    assert refusal(svg.encode()) == "damaged-image"


def test_a_missing_file_is_no_picture_at_fault(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        imaging.probe(str(tmp_path / "gone"), max_pixels=1)


def test_a_mif1_brand_is_told_by_its_codec() -> None:
    box = struct.pack(">I", 20) + b"ftypmif1" + bytes(4) + b"miaf"
    assert sniff(box + bytes(30) + b"hvc1") == "heic"
    assert sniff(box + bytes(30) + b"av01") == "avif"
    assert sniff(box + bytes(30) + b"vvc1") is None


@pytest.mark.parametrize(
    "mark", [b"", b"\xef\xbb\xbf", b"<!-- " + b"x" * 2000 + b" -->\n", b"<!DOCTYPE svg [ <!ENTITY a 'b>'> ]>"]
)
def test_an_svg_root_is_found_behind_what_may_precede_it(mark: bytes) -> None:
    assert sniff(mark + b"<svg:svg xmlns:svg='http://www.w3.org/2000/svg'>") == "svg"
    assert sniff(mark + b"<svgx>") is None


# The preview


@pytest.mark.parametrize("size", [(1500, 1000), (48, 48), (640, 480), (500, 33), (10_000, 1), (1, 10_000), (1, 1)])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_preview_fits_and_keeps_the_aspect(probe: ProbeBytes, form: str, size: tuple[int, int]) -> None:
    found = probe(pictures.encode(form, pictures.landscape(*size)))
    assert len(found.mini_preview) <= 500
    shown = preview(found)
    assert shown.format == "JPEG"
    assert max(shown.size) <= 48
    longest = max(shown.size) / max(size)
    assert all(abs(small - max(1, large * longest)) <= 1 for small, large in zip(shown.size, size, strict=True))


@pytest.mark.parametrize("mode", ["RGB", "L", "checks"])
def test_even_noise_fits(probe: ProbeBytes, mode: str) -> None:
    if mode == "checks":
        image = Image.frombytes("L", (47, 48), bytes([0, 255] * (47 * 24)))
    else:
        image = Image.frombytes(mode, (48, 48), os.urandom(48 * 48 * len(mode)))
    assert len(probe(pictures.encode("PNG", image)).mini_preview) <= 500


def test_a_preview_is_a_baseline_jpeg_without_metadata(probe: ProbeBytes) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Secret"
    data = probe(pictures.encode("JPEG", pictures.landscape(300, 200), exif=exif.tobytes())).mini_preview
    markers, at = [], 2
    while data[at + 1] != 0xDA:
        assert data[at] == 0xFF
        markers.append(data[at + 1])
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    assert data.startswith(b"\xff\xd8\xff")
    assert data.endswith(b"\xff\xd9")
    assert sorted(markers) == [0xC0, 0xC4, 0xDB]


def test_a_preview_uses_its_bytes(probe: ProbeBytes) -> None:
    sizes = [len(probe(pictures.encode("PNG", pictures.landscape(400, 300))).mini_preview) for _ in range(5)]
    assert min(sizes) > 460


def test_transparency_is_white(probe: ProbeBytes) -> None:
    for form in ("PNG", "WEBP", "TIFF", "AVIF"):
        found = probe(pictures.encode(form, pictures.transparent()))
        assert found.has_alpha
        shown = preview(found).convert("RGB")
        assert near(shown.getpixel((6, 16)), (255, 255, 255))
        assert near(shown.getpixel((42, 16)), (0, 0, 0))


def test_sixteen_bits_are_scaled_to_eight(probe: ProbeBytes) -> None:
    assert near(preview(probe(pictures.deep_png(65535))).getpixel((9, 9)), (128, 128, 128), 8)
    assert near(preview(probe(pictures.deep_png(0))).getpixel((9, 9)), (255, 255, 255), 8)


def test_cmyk_is_not_inverted(probe: ProbeBytes) -> None:
    for form in ("JPEG", "TIFF"):
        shown = preview(probe(pictures.encode(form, pictures.quarters().convert("CMYK"))))
        assert near(shown.getpixel((6, 6)), pictures.RED, 60)
        assert near(shown.getpixel((42, 26)), pictures.WHITE, 20)


def test_a_profile_is_applied(probe: ProbeBytes) -> None:
    """In a profile whose red and blue are swapped, stored red is displayed blue."""
    swapped = pictures.icc_profile(red=(0.1431, 0.0606, 0.7141), blue=(0.4361, 0.2225, 0.0139))
    for form in ("JPEG", "PNG", "WEBP"):
        plain = preview(probe(pictures.encode(form, icc_profile=swapped[:-60]))).getpixel((6, 6))
        managed = preview(probe(pictures.encode(form, icc_profile=swapped))).getpixel((6, 6))
        assert near(plain, pictures.RED)
        assert near(managed, pictures.BLUE, 60)


def test_a_grey_picture_has_a_grey_preview(probe: ProbeBytes) -> None:
    assert preview(probe(SAMPLES["jpeg, grey"])).mode == "L"


@pytest.mark.parametrize("form", ["GIF", "WEBP"])
def test_an_animation_shows_its_first_frame(probe: ProbeBytes, form: str) -> None:
    found = probe(
        pictures.encode(form, pictures.quarters(), save_all=True, append_images=[Image.new("RGB", (96, 64))] * 2)
    )
    shown = preview(found).convert("RGB")
    assert near(shown.getpixel((6, 6)), pictures.RED)
    assert near(shown.getpixel((42, 26)), pictures.WHITE)


# EXIF


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
    found = read_exif(block)
    assert found == {
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
    assert isinstance(found["FocalLength"], int)
    assert read_exif(b"Exif\0\0" + block) == found


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
def test_a_user_comment_is_decoded_by_its_code(order: str, raw: bytes) -> None:
    block = pictures.exif_block([], photo=[(0x9286, 7, len(raw), raw)], order=order)
    assert read_exif(block) == {"UserComment": "grüße"}


def test_values_that_are_no_numbers_are_left_out() -> None:
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


def test_a_bad_tag_does_not_cost_the_others() -> None:
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


def test_directories_that_point_at_themselves_end() -> None:
    block = struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", 3)
    for tag in (0x8769, 0x8825, 0xA005):
        block += struct.pack("<HHII", tag, 4, 1, 8)
    assert read_exif(block + struct.pack("<I", 8)) == {}


def test_exif_stays_small_and_fit_for_jsonb() -> None:
    texts = [
        pictures.ascii_entry(tag, b"\xc3\xa9\x01" * 2000) for tag in (0x010D, 0x010E, 0x010F, 0x0110, 0x0131, 0x013B)
    ]
    table = (0x0214, 3, 4000, bytes(8000))
    text = json.dumps(read_exif(pictures.exif_block([*texts, table])), allow_nan=False)
    assert len(text) <= MAX_EXIF_BYTES
    assert "ReferenceBlackWhite" not in text


@pytest.mark.parametrize("seed", range(40))
def test_damaged_exif_is_never_more_than_missing(seed: int) -> None:
    block = bytearray(Image.Exif().tobytes() if seed == 0 else _typical_block())
    rolled = seed * 2654435761
    for step in range(12):
        rolled = (rolled * 6364136223846793005 + 1442695040888963407 + step) % 2**64
        if block:
            block[(rolled >> 33) % len(block)] = rolled >> 20 & 0xFF
    found = read_exif(bytes(block))
    assert "\\u0000" not in json.dumps(found, allow_nan=False)
    json.dumps(found, ensure_ascii=False).encode()


def _typical_block() -> bytes:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Canon", 1
    exif.get_ifd(0x8769).update({0x829A: 0.004, 0x9003: "2024:05:06 07:08:09", 0xA432: (24.0, 70.0, 2.8, 2.8)})
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 30.0, 0.0), 29: "2024:05:06"})
    return exif.tobytes()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_exif_is_found_in_every_container(probe: ProbeBytes, form: str) -> None:
    found = probe(pictures.encode(form, exif=_typical_block())).exif
    assert (found["Make"], found["ExposureTime"], found["GPSLatitude"]) == ("Canon", 0.004, 52.5)


def test_the_tags_of_a_tiff_are_its_own(probe: ProbeBytes) -> None:
    found = probe(pictures.encode("TIFF", tiffinfo={0x010F: "Canon", 0x013B: "Zoe"})).exif
    assert (found["Make"], found["Artist"]) == ("Canon", "Zoe")


@pytest.mark.parametrize("name", [name for name in SAMPLES if name != "heic"])
def test_no_exif_is_an_empty_object(probe: ProbeBytes, name: str) -> None:
    found = probe(SAMPLES[name]).exif
    assert set(found) <= ({"XResolution", "YResolution", "ResolutionUnit"} if name.startswith("tiff") else set())


def _segment(marker: int, payload: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(payload) + 2).to_bytes(2, "big") + payload


@pytest.mark.parametrize("padding", [0, 2 << 20], ids=["small", "larger than is read at once"])
def test_the_first_exif_block_of_a_jpeg_counts_wherever_it_lies(probe: ProbeBytes, padding: int) -> None:
    """Small files are decoded without it, so it must be found and cut out exactly."""
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
        found = probe(data + bytes(padding))
        assert (found.exif["Make"], found.mini_preview) == ("Canon", probe(plain).mini_preview)


def _with_exif_of_length(length: int) -> bytes:
    plain, segment = pictures.encode("JPEG"), _segment(0xE1, _typical_block())
    return plain[:2] + segment[:2] + length.to_bytes(2, "big") + segment[4:] + plain[2:]


@pytest.mark.parametrize("length", [0, 1, 9])
def test_rest_of_a_short_exif_segment_is_skipped(probe: ProbeBytes, length: int) -> None:
    found = probe(_with_exif_of_length(length))
    assert (found.exif, found.mini_preview) == ({}, probe(pictures.encode("JPEG")).mini_preview)


def test_jpeg_inside_its_exif_segment_is_damaged(refusal: Callable[..., str]) -> None:
    assert refusal(_with_exif_of_length(0xFFFF)) == "damaged-image"


@pytest.mark.needs("exiftool")
def test_exif_agrees_with_exiftool(probe: ProbeBytes, tmp_path: Path) -> None:
    data = pictures.encode("JPEG", exif=_typical_block())
    (tmp_path / "picture.jpg").write_bytes(data)
    told = json.loads(
        subprocess.run(
            ["exiftool", "-n", "-json", str(tmp_path / "picture.jpg")], check=True, capture_output=True
        ).stdout
    )[0]
    found = probe(data).exif
    for name in ("Make", "Orientation", "ExposureTime", "DateTimeOriginal", "GPSLatitude", "GPSLatitudeRef"):
        assert found[name] == told[name]


# Pictures of public test suites, where they are at hand


def _expected(folder: str) -> dict[str, dict[str, object]]:
    path = CORPUS / folder / "expected.json"
    return json.loads(path.read_text()) if path.is_file() else {}


@needs_corpus
@pytest.mark.parametrize("name", _expected("valid"))
def test_valid_pictures_of_public_suites_are_measured_right(name: str) -> None:
    expected = _expected("valid")[name]
    found = imaging.probe(str(CORPUS / "valid" / name), max_pixels=100_000_000)
    measured = (found.format, found.width, found.height, found.pages)
    assert measured == tuple(expected[key] for key in ("format", "width_oriented", "height_oriented", "frames"))
    tags = expected["exif"]
    assert isinstance(tags, dict)
    told = {"Orientation": found.orientation} | found.exif
    assert {tag: told.get(tag) for tag in tags} == tags
    assert len(found.mini_preview) <= 500


_PROBE_EACH = """
import resource, signal, sys
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
from worker import imaging
from service.images.probe import Rejected
imaging.prepare()
for path in sys.argv[1:]:
    print(path, end=" ", flush=True)
    signal.alarm(10)
    try:
        imaging.probe(path, max_pixels=100_000_000)
    except Rejected as refusal:
        print(refusal.code)
    else:
        print("probed")
"""


@needs_corpus
def test_hostile_pictures_of_public_suites_are_probed_or_refused() -> None:
    paths = [str(CORPUS / "hostile" / name) for name in _expected("hostile")]
    child = subprocess.run(
        [sys.executable, "-c", _PROBE_EACH, *paths], check=False, capture_output=True, text=True, timeout=50
    )
    assert child.returncode == 0, f"{child.stdout[-300:]}\n{child.stderr[-2000:]}"
    assert len(child.stdout.splitlines()) == len(paths)


def test_what_a_picture_leaves_behind_is_no_message_about_the_next(probe: ProbeBytes) -> None:
    """libvips keeps its messages until somebody asks, also those of a picture that was fine in the end."""
    lying = hostile_pictures.tiff_of((0x010F, 2, 100, b"\xff\xff\xff\xff"))
    probe(lying)
    assert b"bad seek" in pyvips.ffi.string(pyvips.vips_lib.vips_error_buffer())
    probe(SAMPLES["png"])
    assert b"bad seek" not in pyvips.ffi.string(pyvips.vips_lib.vips_error_buffer())
