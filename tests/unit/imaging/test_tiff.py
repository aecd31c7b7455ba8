"""What the samples of a TIFF mean. Values are of the specification (TIFF 6.0), and agree with ImageMagick 6.9 where it
can read them; Lab is held against lcms.
"""

from __future__ import annotations

import io
import itertools
import math
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageCms

from service.images.probe import Rejected
from tests.support import tiffs
from tests.support.tiffs import (
    ASSOCIATED,
    BLACK_IS_ZERO,
    CIELAB,
    CMYK,
    FLOAT,
    ICCLAB,
    MASK,
    PALETTE,
    RGB,
    SIGNED,
    UNASSOCIATED,
    UNSPECIFIED,
    WHITE_IS_ZERO,
    YCBCR,
    tiff,
)
from worker import imaging

Pixel = tuple[int, ...]
Show = Callable[[bytes], list[Pixel]]

RAMP = [at / 15 for at in range(16)]
GREYS = [(at * 17,) for at in range(16)]
FULL_SIZE = {tiffs.SUBSAMPLING: [1, 1]}


@pytest.fixture
def max_pixels() -> int:
    return 10_000_000


@pytest.fixture
def show(path: Path, render: Callable[[bytes], Image.Image]) -> Show:
    """The pixels of a rendition. The probe says the same about its alpha, and its preview has its colours."""

    def run(data: bytes) -> list[Pixel]:
        image = render(data)
        result = imaging.probe(str(path), max_pixels=10_000_000)
        assert result.has_alpha is image.mode.endswith("A")
        preview = _mean(Image.open(io.BytesIO(result.mini_preview)))
        assert max(abs(a - b) for a, b in zip(_mean(image), preview, strict=True)) < 12
        return pixels_of(image)

    return run


def pixels_of(image: Image.Image) -> list[Pixel]:
    data, bands = image.tobytes(), len(image.getbands())
    return [tuple(data[at : at + bands]) for at in range(0, len(data), bands)]


@pytest.fixture
def kind(path: Path) -> Callable[[bytes], str | None]:
    def run(data: bytes) -> str | None:
        path.write_bytes(data)
        with pytest.raises(Rejected, match="unsupported-image") as caught:
            imaging.probe(str(path), max_pixels=10_000_000)
        return caught.value.kind

    return run


def _mean(image: Image.Image) -> tuple[float, ...]:
    flat = Image.new("RGBA", image.size, "white")
    flat.alpha_composite(image.convert("RGBA"))
    pixel = flat.convert("RGB").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return pixel


def near(pixels: list[Pixel], expected: Sequence[Sequence[float]], by: int = 1) -> bool:
    pairs = zip(itertools.chain(*pixels), itertools.chain(*expected), strict=True)
    return len(pixels) == len(expected) and all(abs(a - b) <= by for a, b in pairs)


def floats(values: Sequence[float], *, code: str = "f") -> bytes:
    return struct.pack(f"<{len(values)}{code}", *values)


@pytest.mark.parametrize(("bits", "code"), [(16, "e"), (32, "f")])
def test_tiff_grey_floats_are_a_ramp(show: Show, bits: int, code: str) -> None:
    data = tiff((4, 4), floats(RAMP, code=code), photometric=BLACK_IS_ZERO, bits=bits, form=FLOAT)
    assert near(show(data), GREYS)
    inverse = tiff((4, 4), floats(RAMP, code=code), photometric=WHITE_IS_ZERO, bits=bits, form=FLOAT)
    assert near(show(inverse), GREYS[::-1])


@pytest.mark.parametrize("full", [255, 65535])
def test_tiff_grey_floats_of_other_ranges(show: Show, full: int) -> None:
    values = floats([value * full for value in RAMP])
    assert near(show(tiff((4, 4), values, photometric=BLACK_IS_ZERO, bits=32, form=FLOAT)), GREYS)


def test_tiff_nan_is_black(show: Show) -> None:
    values = [*RAMP[:12], math.nan, math.inf, -math.inf, 1.5]
    data = tiff((4, 4), floats(values), photometric=BLACK_IS_ZERO, bits=32, form=FLOAT)
    assert near(show(data), [*GREYS[:12], (0,), (255,), (0,), (255,)])


def test_tiff_float_colours_are_linear_light(show: Show) -> None:
    data = tiff((4, 4), floats([0.5, 0.0, 1.0] * 16), photometric=RGB, samples=3, bits=32, form=FLOAT)
    assert near(show(data), [(188, 0, 255)] * 16)


@pytest.mark.parametrize("kind", [UNASSOCIATED, ASSOCIATED])
def test_tiff_float_alpha_is_up_to_one(show: Show, kind: int) -> None:
    values = [0.5, 0.25, 0.0, 0.5] if kind == ASSOCIATED else [1.0, 0.5, 0.0, 0.5]
    data = tiff((4, 4), floats(values * 16), photometric=RGB, samples=4, bits=32, extra=[kind], form=FLOAT)
    assert near(show(data), [(255, 188, 0, 128)] * 16)
    grey = tiff((4, 4), floats([0.2, 0.6] * 16), photometric=BLACK_IS_ZERO, samples=2, bits=32, extra=[2], form=FLOAT)
    assert near(show(grey), [(51, 153)] * 16)


@pytest.mark.parametrize(
    ("bits", "form", "code", "full"),
    [
        (8, SIGNED, "b", 127),
        (16, SIGNED, "h", 32767),
        (32, SIGNED, "i", 2**31 - 1),
        (32, tiffs.UNSIGNED, "I", 2**32 - 1),
        (32, tiffs.UNSIGNED, "I", 65535),
        (32, SIGNED, "i", 255),
        (16, tiffs.UNSIGNED, "H", 65535),
    ],
)
def test_tiff_integers_of_every_width(show: Show, bits: int, form: int, code: str, full: int) -> None:
    values = struct.pack(f"<16{code}", *(round(value * full) for value in RAMP))
    assert near(show(tiff((4, 4), values, photometric=BLACK_IS_ZERO, bits=bits, form=form)), GREYS)


def test_tiff_negative_integers_are_black(show: Show) -> None:
    values = struct.pack("<16h", *[-30_000] * 8, *[32767] * 8)
    data = tiff((4, 4), values, photometric=BLACK_IS_ZERO, bits=16, form=SIGNED)
    assert near(show(data), [(0,)] * 8 + [(255,)] * 8)


YCC = (Image.new("RGB", (1, 1), (200, 100, 50)).convert("YCbCr").tobytes(), (200, 100, 50))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("planar", [False, True])
def test_tiff_uncompressed_ycbcr(show: Show, order: str, planar: bool) -> None:
    pixels = b"".join(bytes([band]) * 16 for band in YCC[0]) if planar else YCC[0] * 16
    data = tiff((4, 4), pixels, photometric=YCBCR, samples=3, planar=planar, order=order, more=FULL_SIZE)
    assert near(show(data), [YCC[1]] * 16, by=2)


def test_tiff_ycbcr_16_bits_and_alpha(show: Show) -> None:
    deep = struct.pack("<3H", *(257 * band for band in YCC[0])) * 16
    data = tiff((4, 4), deep, photometric=YCBCR, samples=3, bits=16, more=FULL_SIZE)
    assert near(show(data), [YCC[1]] * 16, by=2)
    clear = tiff((4, 4), (YCC[0] + b"\x80") * 16, photometric=YCBCR, samples=4, extra=[2], more=FULL_SIZE)
    assert near(show(clear), [(*YCC[1], 128)] * 16, by=2)


def test_tiff_ycbcr_reference_black_white(show: Show) -> None:
    video = [(16, 1), (235, 1), (128, 1), (240, 1), (128, 1), (240, 1)]
    pixels = bytes([16, 128, 128, 235, 128, 128, 81, 90, 240, 145, 54, 34]) * 4
    data = tiff((4, 4), pixels, photometric=YCBCR, samples=3, more=FULL_SIZE | {tiffs.BLACK_WHITE: video})
    assert near(show(data)[:4], [(0, 0, 0), (255, 255, 255), (254, 0, 0), (0, 255, 1)], by=2)


def test_tiff_subsampled_ycbcr_has_no_alpha(show: Show) -> None:
    for factors in ({}, {tiffs.SUBSAMPLING: [2, 2]}):
        data = tiff((4, 4), bytes([100] * 4 + [128] * 2) * 4, photometric=YCBCR, samples=3, more=factors)
        assert near(show(data), [(100, 100, 100)] * 16)


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ([UNASSOCIATED], (200, 100, 60, 128)),
        ([ASSOCIATED], (255, 199, 120, 128)),
        ([UNSPECIFIED], (200, 100, 60)),
        ([], (200, 100, 60, 128)),
    ],
)
def test_tiff_alpha_by_extra_samples(show: Show, extra: list[int], expected: Pixel) -> None:
    data = tiff((4, 4), bytes([200, 100, 60, 128]) * 16, photometric=RGB, samples=4, extra=extra)
    assert near(show(data), [expected] * 16)


def test_tiff_alpha_after_another_extra_sample(show: Show) -> None:
    pixels = bytes([200, 100, 60, 9, 128]) * 16
    data = tiff((4, 4), pixels, photometric=RGB, samples=5, extra=[UNSPECIFIED, UNASSOCIATED])
    assert near(show(data), [(200, 100, 60, 128)] * 16)
    grey = tiff((4, 4), bytes([200, 1, 2]) * 16, photometric=BLACK_IS_ZERO, samples=3, extra=[0, 0])
    assert near(show(grey), [(200,)] * 16)


def test_tiff_palette_with_and_without_alpha(show: Show) -> None:
    colours = {tiffs.COLOUR_MAP: [257 * at for at in (*range(256), *reversed(range(256)), *[30] * 256)]}
    data = tiff((4, 4), bytes(range(0, 256, 17)), photometric=PALETTE, more=colours)
    assert near(show(data), [(at, 255 - at, 30) for at in range(0, 256, 17)])
    clear = tiff((4, 4), bytes([50, 128]) * 16, photometric=PALETTE, samples=2, extra=[2], more=colours)
    assert near(show(clear), [(50, 205, 30, 128)] * 16)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_tiff_of_few_bits_has_the_full_range(show: Show, bits: int) -> None:
    steps = (1 << bits) - 1
    values = [at * steps // 15 for at in range(16)]
    packed = sum(value << bits * (15 - at) for at, value in enumerate(values)).to_bytes(2 * bits, "big")
    data = tiff((16, 1), packed, photometric=BLACK_IS_ZERO, bits=bits)
    assert near(show(data), [(value * 255 // steps,) for value in values])
    inverse = tiff((16, 1), packed, photometric=WHITE_IS_ZERO, bits=bits)
    assert near(show(inverse), [(255 - value * 255 // steps,) for value in values])


def test_tiff_mask_is_black_and_white(show: Show) -> None:
    data = tiff((8, 1), b"\x0f", photometric=MASK, bits=1)
    assert near(show(data), [(0,)] * 4 + [(255,)] * 4)


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("photometric", [WHITE_IS_ZERO, BLACK_IS_ZERO])
def test_tiff_grey_in_planes_with_an_alpha(show: Show, photometric: int, bits: int) -> None:
    factor = (2**bits - 1) // 255
    stored = [255 - grey if photometric == WHITE_IS_ZERO else grey for (grey,) in GREYS]
    codes = {8: "B", 16: "H", 32: "I"}
    planes = struct.pack(f"<32{codes[bits]}", *(value * factor for value in [*stored, *[102] * 16]))
    options: dict[str, Any] = {"photometric": photometric, "samples": 2, "bits": bits, "planar": True}
    assert near(show(tiff((4, 4), planes, extra=[UNASSOCIATED], **options)), [(grey, 102) for (grey,) in GREYS])
    assert near(show(tiff((4, 4), planes, extra=[UNSPECIFIED], **options)), GREYS)


@pytest.mark.parametrize(("bits", "code", "full"), [(8, "b", 127), (16, "h", 32767)])
def test_tiff_signed_white_is_zero(show: Show, bits: int, code: str, full: int) -> None:
    values = struct.pack(f"<16{code}", *(round(full * (1 - value)) for value in RAMP))
    assert near(show(tiff((4, 4), values, photometric=WHITE_IS_ZERO, bits=bits, form=SIGNED)), GREYS)


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_tiff_cmyk_of_every_width(render: Callable[[bytes], Image.Image], bits: int) -> None:
    code, full = {8: ("B", 255), 16: ("H", 65535), 32: ("I", 2**32 - 1)}[bits]
    values = [round(value * full) for value in (0.1, 0.2, 0.3, 0.4, 0.5)]
    with_alpha = struct.pack(f"<5{code}", *values) * 16
    shown = pixels_of(render(tiff((4, 4), with_alpha, photometric=CMYK, samples=5, bits=bits, extra=[2])))
    plain = pixels_of(render(tiff((4, 4), bytes([26, 51, 76, 102]) * 16, photometric=CMYK, samples=4)))
    assert near(shown, [(*pixel, 128) for pixel in plain])


LAB = (60, 30, -40)


@pytest.mark.parametrize(
    ("photometric", "bits", "form", "pixel"),
    [
        (CIELAB, 8, tiffs.UNSIGNED, struct.pack("<Bbb", 153, 30, -40)),
        (CIELAB, 16, tiffs.UNSIGNED, struct.pack("<Hhh", 39321, 30 * 256, -40 * 256)),
        (CIELAB, 32, FLOAT, struct.pack("<3f", *LAB)),
        (ICCLAB, 8, tiffs.UNSIGNED, bytes([153, 158, 88])),
        (ICCLAB, 16, tiffs.UNSIGNED, struct.pack("<3H", 39321, 158 * 256, 88 * 256)),
    ],
)
def test_tiff_lab_matches_lcms(show: Show, photometric: int, bits: int, form: int, pixel: bytes) -> None:
    to_srgb = ImageCms.buildTransform(ImageCms.createProfile("LAB", 5000), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    expected = ImageCms.applyTransform(Image.frombytes("LAB", (1, 1), bytes([153, 30, 256 - 40])), to_srgb)
    assert expected is not None
    colour = expected.getpixel((0, 0))
    assert isinstance(colour, tuple)
    data = tiff((4, 4), pixel * 16, photometric=photometric, samples=3, bits=bits, form=form)
    assert near(show(data), [colour] * 16, by=2)
    unit = len(pixel) // 3
    planes = b"".join(pixel[at : at + unit] * 16 for at in range(0, len(pixel), unit))
    data = tiff((4, 4), planes, photometric=photometric, samples=3, bits=bits, form=form, planar=True)
    assert near(show(data), [colour] * 16, by=2)


@pytest.mark.parametrize(
    ("expected", "samples"),
    [
        ("64-bit float TIFF", {"bits": 64, "form": FLOAT, "photometric": BLACK_IS_ZERO}),
        ("64-bit TIFF", {"bits": 64, "photometric": BLACK_IS_ZERO}),
        ("12-bit TIFF", {"bits": 12, "photometric": BLACK_IS_ZERO}),
        ("4-bit multi-band TIFF", {"bits": 4, "samples": 3, "photometric": RGB}),
        ("mixed-depth TIFF", {"bits": [5, 6, 5], "samples": 3, "photometric": RGB}),
        ("complex TIFF", {"bits": 32, "form": tiffs.COMPLEX, "photometric": BLACK_IS_ZERO}),
        ("LogL TIFF", {"photometric": 32844}),
        ("multi-ink TIFF", {"samples": 6, "photometric": CMYK}),
        ("planar 16-bit float TIFF", {"bits": 16, "samples": 3, "planar": True, "form": FLOAT, "photometric": RGB}),
        ("32-bit associated-alpha TIFF", {"bits": 32, "samples": 4, "extra": [1], "photometric": RGB}),
        ("signed associated-alpha TIFF", {"samples": 4, "extra": [1], "form": SIGNED, "photometric": RGB}),
        (
            "planar associated-alpha TIFF",
            {"bits": 16, "samples": 2, "extra": [1], "planar": True, "photometric": BLACK_IS_ZERO},
        ),
        ("planar palette TIFF", {"samples": 2, "extra": [2], "planar": True, "photometric": PALETTE}),
        ("subsampled YCbCr TIFF", {"samples": 3, "planar": True, "photometric": YCBCR}),
        (
            "tiled planar TIFF",
            {
                "samples": 3,
                "planar": True,
                "photometric": RGB,
                "more": {tiffs.TILE_WIDTH: [16], tiffs.TILE_HEIGHT: [16]},
            },
        ),
    ],
)
def test_unsupported_tiff_is_named(
    kind: Callable[[bytes], str | None], expected: str, samples: dict[str, object]
) -> None:
    assert kind(tiff((4, 4), bytes(16 * 3 * 64), **samples)) == expected  # type: ignore[arg-type]


def test_tiff_with_unsupported_second_page(kind: Callable[[bytes], str | None]) -> None:
    first = Image.new("L", (4, 4))
    out = io.BytesIO()
    first.save(out, "TIFF", save_all=True, append_images=[first])
    data = bytearray(out.getvalue())
    entry = struct.pack("<HHIHH", 258, 3, 1, 8, 0)
    at = data.rindex(entry)
    data[at : at + 12] = struct.pack("<HHIHH", 258, 3, 1, 12, 0)
    assert kind(bytes(data)) == "12-bit TIFF"
