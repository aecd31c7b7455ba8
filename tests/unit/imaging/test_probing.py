"""Probes: what they say about pictures of every format, and what they refuse."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import pyvips
from PIL import Image

from service.media_types import MIME_TYPES, sniff
from tests.support import hostile_pictures, pictures
from tests.support.imaging import ProbeBytes
from tests.unit.imaging.probes import near, open_preview
from worker import imaging

CORPUS = Path(__file__).parents[4] / "shared" / "corpus"
needs_corpus = pytest.mark.skipif(not CORPUS.is_dir(), reason="the corpus of public test suites is not here")

SAMPLES = pictures.every_format()


# What a probe finds


@pytest.mark.parametrize("name", SAMPLES)
def test_every_format_is_probed(probe: ProbeBytes, name: str) -> None:
    result = probe(SAMPLES[name])
    assert result.format == name.partition(",")[0]
    assert result.format in MIME_TYPES
    size = {"heic": (32, 48), "svg": (96, 64)}.get(
        name, (96, 64) if name.endswith(("animated", "pages", "alpha")) else (160, 120)
    )
    assert (result.width, result.height) == size
    assert result.pages == (4 if name.endswith(("animated", "pages")) else 1)
    if name != "gif, animated":  # an encoder may repeat pixels of the frame before by transparent ones
        assert result.has_alpha is (name in {"png, alpha", "svg", "webp, animated"})
    assert 100 < len(result.mini_preview) <= 500


def test_probe_is_repeatable(probe: ProbeBytes) -> None:
    assert probe(SAMPLES["jpeg"]) == probe(SAMPLES["jpeg"])


@pytest.mark.parametrize("name", SAMPLES)
def test_file_that_is_moved_meanwhile_is_probed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = tmp_path / "picture"
    path.write_bytes(SAMPLES[name])
    expected = imaging.probe(str(path), max_pixels=1_000_000)

    def sniff_and_move(head: bytes) -> str | None:
        path.rename(tmp_path / "moved")
        return sniff(head)

    monkeypatch.setattr("worker.imaging.formats.sniff", sniff_and_move)
    assert imaging.probe(str(path), max_pixels=1_000_000) == expected


def test_changed_file_is_read_again(probe: ProbeBytes) -> None:
    assert probe(pictures.encode("WEBP", pictures.quarters(30, 20))).width == 30
    assert probe(pictures.encode("WEBP", pictures.quarters(50, 20))).width == 50


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_applied_to_size_and_preview(probe: ProbeBytes, form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"tiffinfo": {0x0112: orientation}} if form == "TIFF" else {"exif": exif.tobytes()}
    result = probe(pictures.encode(form, **options))
    assert result.orientation == orientation
    assert result.exif["Orientation"] == orientation
    assert (result.width, result.height) == ((96, 64) if orientation < 5 else (64, 96))
    shown = open_preview(result)
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


def test_invalid_orientation_is_ignored(probe: ProbeBytes) -> None:
    exif = Image.Exif()
    exif[0x0112] = 9
    assert probe(pictures.encode("JPEG", exif=exif.tobytes())).orientation == 1


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_tiff_with_invalid_orientation_is_upright(probe: ProbeBytes, order: str, orientation: int) -> None:
    data = bytearray(pictures.encode("TIFF", tiffinfo={0x0112: 6}))
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    assert data.count(entry) == 1
    at = data.index(entry)
    data[at : at + 12] = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    if order == ">":
        data = bytearray(pictures.exif_block(_grey_pixel(orientation), order=">"))
    result = probe(bytes(data))
    assert result.orientation == 1
    assert (result.width, result.height) == ((96, 64) if order == "<" else (1, 1))


def _grey_pixel(orientation: int) -> list[pictures.Entry]:
    own = {256: 1, 257: 1, 258: 8, 259: 1, 262: 1, 273: 0, 274: orientation, 277: 1, 278: 1, 279: 1}
    return [(tag, 3, 1, struct.pack(">HH", value, 0)) for tag, value in own.items()]


def test_heic_is_turned_by_its_container_only(probe: ProbeBytes) -> None:
    result = probe(pictures.HEIC)
    assert (result.width, result.height, result.orientation) == (32, 48, 6)
    assert result.exif["Orientation"] == 6
    assert result.exif["Make"] == "Daguerre"
    assert result.exif["GPSLatitude"] == -33.5
    shown = open_preview(result)
    top_right, bottom_left = shown.getpixel((30, 2)), shown.getpixel((2, 45))
    assert isinstance(top_right, tuple)
    assert isinstance(bottom_left, tuple)
    # Turned clockwise: red grows downwards, green to the left.
    assert top_right[0] < 80 > top_right[1]
    assert bottom_left[0] > 170 < bottom_left[1]


def test_apng_counts_its_default_image(probe: ProbeBytes) -> None:
    first, *rest = pictures.frames(3)
    data = pictures.encode("PNG", first, save_all=True, append_images=rest, default_image=True)
    assert probe(data).pages == 3


def test_tiff_pages_of_different_sizes(probe: ProbeBytes, refusal: Callable[..., str]) -> None:
    data = pictures.encode(
        "TIFF", pictures.quarters(), save_all=True, append_images=[pictures.quarters(30, 40), pictures.quarters(9, 9)]
    )
    result = probe(data)
    assert (result.width, result.height, result.pages) == (96, 64, 3)
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
    result = probe(b'<svg xmlns="http://www.w3.org/2000/svg" %s><rect width="9" height="9"/></svg>' % attributes)
    assert (result.width, result.height) == size


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
def test_truncated_picture_is_damaged(refusal: Callable[..., str], name: str) -> None:
    data = SAMPLES[name]
    shortest = 100 if name == "svg" else 40
    cuts = {shortest, *(len(data) * share // 100 for share in (10, 25, 50, 75, 90, 99)), len(data) - 6}
    if not name.startswith("tiff"):  # a TIFF may end with the offset of no next page
        cuts |= {len(data) - 2}
    for cut in sorted(cut for cut in cuts if cut >= shortest):
        assert refusal(data[:cut]) == "damaged-image", f"cut to {cut} of {len(data)} bytes"


@pytest.mark.parametrize("name", [name for name in SAMPLES if name != "svg"])
def test_bytes_after_the_picture_are_ignored(probe: ProbeBytes, name: str) -> None:
    assert probe(SAMPLES[name] + b"and then some") == probe(SAMPLES[name])


def test_gif_without_end_mark_is_accepted(probe: ProbeBytes) -> None:
    assert probe(SAMPLES["gif, animated"][:-1]).pages == 4


def test_truncated_jpeg_with_end_mark_is_damaged(refusal: Callable[..., str]) -> None:
    data = SAMPLES["jpeg"]
    assert refusal(data[: len(data) // 2] + b"\xff\xd9") == "damaged-image"


def test_stray_bytes_before_a_jpeg_marker(probe: ProbeBytes) -> None:
    data = SAMPLES["jpeg"]
    assert probe(data[:-2] + b"\0\0\0" + data[-2:]).width == 160


def test_png_with_wrong_checksum_is_damaged(refusal: Callable[..., str]) -> None:
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
    result = probe(SAMPLES[name])
    pixels = result.width * result.height * result.pages
    assert probe(SAMPLES[name], pixels) == result
    assert refusal(SAMPLES[name], pixels - 1) == "too-many-pixels"


def test_jpeg_of_fill_bytes_is_refused(refusal: Callable[..., str]) -> None:
    assert refusal(b"\xff\xd8" + b"\xff" * 2_000_000) == "damaged-image"


def test_svg_reads_no_other_file(probe: ProbeBytes, tmp_path: Path) -> None:
    (tmp_path / "near.png").write_bytes(pictures.encode("PNG", Image.new("RGB", (9, 9))))
    for link in ("near.png", (tmp_path / "near.png").as_uri(), "http://127.0.0.1:9/near.png"):
        image = f'<image href="{link}" width="9" height="9"/>'
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9">{image}</svg>'
        assert open_preview(probe(svg.encode())).convert("L").getextrema() == (255, 255)


def test_svg_entities_do_not_explode(refusal: Callable[..., str]) -> None:
    entities = "".join(f'<!ENTITY e{i + 1} "{f"&e{i};" * 10}">' for i in range(9))
    svg = (
        f'<!DOCTYPE svg [<!ENTITY e0 "lol">{entities}]><svg xmlns="http://www.w3.org/2000/svg"><text>&e9;</text></svg>'
    )
    assert refusal(svg.encode()) == "damaged-image"


def test_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        imaging.probe(str(tmp_path / "gone"), max_pixels=1)


def test_mif1_brand_is_sniffed_by_codec() -> None:
    box = struct.pack(">I", 20) + b"ftypmif1" + bytes(4) + b"miaf"
    assert sniff(box + bytes(30) + b"hvc1") == "heic"
    assert sniff(box + bytes(30) + b"av01") == "avif"
    assert sniff(box + bytes(30) + b"vvc1") is None


@pytest.mark.parametrize(
    "mark", [b"", b"\xef\xbb\xbf", b"<!-- " + b"x" * 2000 + b" -->\n", b"<!DOCTYPE svg [ <!ENTITY a 'b>'> ]>"]
)
def test_svg_root_is_sniffed_after_its_prologue(mark: bytes) -> None:
    assert sniff(mark + b"<svg:svg xmlns:svg='http://www.w3.org/2000/svg'>") == "svg"
    assert sniff(mark + b"<svgx>") is None


# Pictures of public test suites, where they are at hand


def _expected(folder: str) -> dict[str, dict[str, object]]:
    path = CORPUS / folder / "expected.json"
    return json.loads(path.read_text()) if path.is_file() else {}


@needs_corpus
@pytest.mark.parametrize("name", _expected("valid"))
def test_public_suites_valid_pictures(name: str) -> None:
    expected = _expected("valid")[name]
    result = imaging.probe(str(CORPUS / "valid" / name), max_pixels=100_000_000)
    measured = (result.format, result.width, result.height, result.pages)
    assert measured == tuple(expected[key] for key in ("format", "width_oriented", "height_oriented", "frames"))
    tags = expected["exif"]
    assert isinstance(tags, dict)
    values = {"Orientation": result.orientation} | result.exif
    assert {tag: values.get(tag) for tag in tags} == tags
    assert len(result.mini_preview) <= 500


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
def test_public_suites_hostile_pictures() -> None:
    paths = [str(CORPUS / "hostile" / name) for name in _expected("hostile")]
    child = subprocess.run(
        [sys.executable, "-c", _PROBE_EACH, *paths], check=False, capture_output=True, text=True, timeout=50
    )
    assert child.returncode == 0, f"{child.stdout[-300:]}\n{child.stderr[-2000:]}"
    assert len(child.stdout.splitlines()) == len(paths)


def test_decoder_messages_do_not_leak(probe: ProbeBytes) -> None:
    """libvips keeps its messages until they are read, also those of a picture that was decoded in the end."""
    lying = hostile_pictures.tiff_of((0x010F, 2, 100, b"\xff\xff\xff\xff"))
    probe(lying)
    assert b"bad seek" in pyvips.ffi.string(pyvips.vips_lib.vips_error_buffer())
    probe(SAMPLES["png"])
    assert b"bad seek" not in pyvips.ffi.string(pyvips.vips_lib.vips_error_buffer())
