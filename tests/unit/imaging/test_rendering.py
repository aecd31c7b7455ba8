"""Renditions in every format: their quality, and the colours and alpha of the original."""

from __future__ import annotations

import io
import itertools
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support import pictures
from tests.support.imaging import RenderFile, Shown
from tests.support.pictures import BLUE, GREEN, RED, WHITE, encode, quarters
from tests.support.renditions import BLACK, FORMATS, NOTHING, SAMPLES, colours_at, likeness, near

# Formats


@pytest.mark.parametrize("name", SAMPLES)
def test_every_format_is_converted_to_every_other(shown: Shown, name: str) -> None:
    for form in FORMATS:
        image = shown(SAMPLES[name], format=form, width=30, height=30, fit="cover")
        assert (image.format or "").lower() == form
        assert image.size == (30, 30)
        assert image.info.keys().isdisjoint({"icc_profile", "exif", "xmp", "comment"})


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF"])
def test_every_decoder_keeps_colours(shown: Shown, form: str) -> None:
    for size in ({}, {"width": 24}):
        image = shown(encode(form, quarters(192, 128)), **size)
        x, y = image.width // 4, image.height // 4
        result = colours_at(image, (x, y), (3 * x, y), (x, 3 * y), (3 * x, 3 * y))
        assert all(map(near, result, (RED, GREEN, BLUE, WHITE), [12] * 4)), result


def test_heic_and_svg_keep_colours(shown: Shown) -> None:
    heic = shown(SAMPLES["heic"], width=16)
    assert heic.size == (16, 24)
    top, bottom = colours_at(heic, (8, 2), (8, 21))
    assert isinstance(top, tuple)
    assert isinstance(bottom, tuple)
    assert top != bottom
    drawing = shown(pictures.SVG, width=960, enlarge=True)
    assert drawing.size == (960, 640)
    # Drawn anew, and not enlarged: the edge is one.
    assert near(drawing.getpixel((478, 320)), (*RED, 255), 2)
    assert drawing.getpixel((481, 320))[3] == 0  # type: ignore[index]


@pytest.mark.parametrize("form", ["jpeg", "webp", "avif"])
def test_quality_costs_bytes(render_file: RenderFile, form: str) -> None:
    low, high = (len(render_file(SAMPLES["png"], format=form, quality=quality)) for quality in (20, 90))
    assert low * 1.5 < high


def test_jpeg_of_noise_at_best_quality_is_complete(shown: Shown) -> None:
    noise = Image.frombytes("RGB", (400, 300), np.random.default_rng(1).bytes(400 * 300 * 3))
    image = shown(encode("PNG", noise), format="jpeg", quality=100)
    assert likeness(image, noise) > 35


# How good it looks


def shifted(image: Image.Image, width: int, height: int, filtered: Image.Resampling) -> Image.Image:
    """Resizes with the left and upper edge half a pixel of the result off."""
    x, y = image.width / width / 2, image.height / height / 2
    return image.resize((width, height), filtered, box=(x, y, image.width, image.height))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize("size", [(800, 600), (803, 597)], ids=str)
def test_downscaling_matches_pillow(shown: Shown, form: str, size: tuple[int, int]) -> None:
    photo = pictures.landscape(*size)
    data = encode(form, photo, **({"quality": 95} if form != "PNG" else {}))
    decoded = Image.open(io.BytesIO(data)).convert("RGB")
    for width in (97, 160, 300):  # a JPEG is decoded 8, 4 and 2 times smaller
        image = shown(data, width=width)
        lanczos = Image.Resampling.LANCZOS
        assert likeness(image, decoded.resize(image.size, lanczos)) > 37.5
        assert likeness(image, shifted(decoded, *image.size, lanczos)) < 37.5


def test_enlargement_does_not_shift_pixels(shown: Shown) -> None:
    photo = pictures.landscape(100, 80)
    image = shown(encode("PNG", photo), width=300, enlarge=True)
    cubic = Image.Resampling.BICUBIC
    assert likeness(image, photo.resize((300, 240), cubic)) > 55
    assert likeness(image, shifted(photo, 300, 240, cubic)) < 55


# Colours of the source


def test_rendition_applies_and_drops_the_profile(shown: Shown) -> None:
    """A profile with exchanged red and blue shows stored red as blue."""
    swapped = pictures.icc_profile(red=(0.1431, 0.0606, 0.7141), blue=(0.4361, 0.2225, 0.0139))
    steps: list[dict[str, Any]] = [{"width": 48}, {"crop": (96, 64)}, {"trim": 0.0}]
    for form, params in itertools.product(("JPEG", "PNG", "WEBP"), steps):
        image = shown(encode(form, icc_profile=swapped), **params)
        # Its curve is that of 2.2, which is nearly sRGB's.
        assert near(image.convert("RGB").getpixel((6, 6)), BLUE, 20)
        assert "icc_profile" not in image.info


def test_wide_gamut_becomes_srgb(shown: Shown) -> None:
    """Display P3 by its colorants, with a gamma of 2.2. Colours in both gamuts are computed by its matrices."""
    red, green, blue = (0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841)
    wide = pictures.icc_profile(red=red, green=green, blue=blue)
    stored = (180, 120, 100)
    image = shown(encode("PNG", Image.new("RGB", (60, 60), stored), icc_profile=wide), width=30)
    to_xyz = np.array([red, green, blue]).T
    srgb = np.array([[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])
    linear = np.linalg.inv(srgb) @ to_xyz @ (np.array(stored) / 255) ** (0x0233 / 256)
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    expected = tuple(round(255 * value) for value in curve)
    assert max(abs(a - b) for a, b in zip(expected, stored, strict=True)) >= 8
    assert near(image.getpixel((15, 15)), expected, 3)


def test_sixteen_bits_become_eight(shown: Shown) -> None:
    for params in ({}, {"width": 48}, {"trim": 1.0}):
        image = shown(pictures.deep_png(32768), **params)
        assert image.mode == "RGBA"
        assert near(image.getpixel((9, 9)), (128, 128, 128, 128), 1)
        flat = shown(pictures.deep_png(32768), format="jpeg", **params)
        assert near(flat.getpixel((9, 9)), (191, 191, 191), 3)


def test_cmyk_becomes_rgb(shown: Shown) -> None:
    for form in ("JPEG", "TIFF"):
        image = shown(encode(form, Image.new("CMYK", (64, 64), (0, 255, 255, 0))), width=32)
        red, green, blue = image.getpixel((16, 16))  # type: ignore[misc]
        assert image.mode == "RGB"
        assert red > 200
        assert max(green, blue) < 80


def test_grey_stays_grey_without_colours(shown: Shown) -> None:
    grey = encode("PNG", Image.new("L", (40, 20), 90))
    assert shown(grey, width=20).mode == "L"
    assert shown(grey, width=20, format="jpeg").mode == "L"
    padded = shown(grey, width=40, height=40, fit="pad", background=(*RED, 255))
    assert colours_at(padded, (2, 2), (20, 20)) == [RED, (90, 90, 90)]


# Alpha


def test_alpha_is_kept_if_the_format_has_it(shown: Shown) -> None:
    data = encode("PNG", pictures.transparent())
    for form in ("png", "webp", "avif", "gif"):
        left, right = colours_at(shown(data, format=form, width=48), (8, 16), (40, 16))
        assert isinstance(left, tuple)
        assert left[3] == 0
        assert near(right, (0, 0, 0, 255), 8)
    assert colours_at(shown(data, format="jpeg", width=48), (8, 16), (40, 16)) == [WHITE, BLACK]


def test_background_fills_transparent_pixels(shown: Shown) -> None:
    data = encode("PNG", pictures.transparent())
    for form in ("png", "webp", "avif", "jpeg"):
        image = shown(data, format=form, background=(*BLUE, 255))
        assert image.mode == "RGB"
        assert all(map(near, colours_at(image, (8, 16), (88, 16)), (BLUE, BLACK), (12, 12)))
    half = colours_at(shown(data, background=(*BLUE, 128)), (8, 16), (88, 16))
    assert half == [(*BLUE, 128), (0, 0, 0, 255)]
    over_white = colours_at(shown(data, format="jpeg", background=(0, 0, 0, 51)), (8, 16))[0]
    assert near(over_white, (204, 204, 204), 2)
    assert colours_at(shown(data, background=NOTHING), (8, 16)) == [NOTHING]


def test_transparent_pixels_do_not_bleed(shown: Shown) -> None:
    image = Image.new("RGBA", (80, 80), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (40, 0, 80, 80))
    result = np.asarray(shown(encode("PNG", image), width=30))
    assert result[result[:, :, 3] > 8][:, 0].max() <= 16


def test_canvas_is_transparent_only_with_alpha(shown: Shown) -> None:
    box = {"width": 100, "height": 100, "fit": "pad"}
    assert colours_at(shown(encode("PNG", pictures.transparent()), **box), (50, 5)) == [NOTHING]
    assert colours_at(shown(encode("PNG", pictures.transparent()), format="jpeg", **box), (50, 5)) == [WHITE]
    assert shown(encode("PNG"), **box).mode == "RGB"
