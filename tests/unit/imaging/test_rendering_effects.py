"""Renditions with changed colours, blur, sharpness, an ellipse or a watermark."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support import pictures
from tests.support.imaging import Shown
from tests.support.pictures import BLUE, RED, WHITE, encode
from tests.support.renditions import NOTHING, SAMPLES, colours_at, mark, near


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"brightness": 1.5}, (150, 90, 255)),
        ({"brightness": 0.5}, (50, 30, 100)),
        ({"contrast": 2.0}, (73, 0, 255)),
        ({"contrast": 0.0}, (128, 128, 128)),
        ({"saturation": 0.0}, (79, 79, 79)),
        ({"saturation": 0.5}, (89, 69, 139)),
        ({"grayscale": True, "brightness": 2.0}, (157, 157, 157)),
        ({"brightness": 2.0, "contrast": 0.5}, (164, 124, 255)),
    ],
    ids=str,
)
def test_brightness_contrast_and_saturation(shown: Shown, params: dict[str, Any], expected: tuple[int, ...]) -> None:
    image = shown(encode("PNG", Image.new("RGBA", (20, 20), (100, 60, 200, 77))), **params)
    assert near(image.convert("RGBA").getpixel((9, 9)), (*expected, 77), 1)


def test_grayscale_writes_one_band(shown: Shown) -> None:
    assert shown(encode("PNG"), grayscale=True).mode == "L"
    assert shown(encode("PNG"), grayscale=True, format="jpeg").mode == "L"
    assert shown(encode("PNG"), grayscale=True, format="webp").size == (96, 64)


@pytest.mark.parametrize("sigma", [1.0, 4.0, 12.0, 40.0])
def test_blur_has_its_standard_deviation(shown: Shown, sigma: float) -> None:
    image = Image.new("L", (400, 40), 0)
    image.paste(255, (200, 0, 400, 40))
    row = np.asarray(shown(encode("PNG", image), blur=sigma), dtype=float)[20]
    steps = np.diff(row)
    places = np.arange(len(steps)) + 1
    middle = (steps * places).sum() / steps.sum()
    spread = np.sqrt((steps * (places - middle) ** 2).sum() / steps.sum())
    assert abs(middle - 200) < 0.5
    assert abs(spread - sigma) < 0.15 * sigma + 0.1


def test_sharpen_raises_edges(shown: Shown) -> None:
    image = Image.new("RGB", (60, 20), (90, 90, 90))
    image.paste((160, 160, 160), (30, 0, 60, 20))
    result = np.asarray(shown(encode("PNG", image), sharpen=2.0))[10, :, 0]
    assert result[29] < 85
    assert result[30] > 165
    assert abs(int(result[5]) - 90) <= 1
    assert shown(encode("PNG", pictures.transparent()), sharpen=2.0).mode == "RGBA"


def test_ellipse_fills_the_picture(shown: Shown) -> None:
    image = shown(encode("PNG", Image.new("RGB", (80, 40), RED)), ellipse=True)
    alpha = np.asarray(image)[:, :, 3]
    assert abs(alpha.sum() / 255 - np.pi * 40 * 20) < 8
    assert alpha[0, 0] == 0
    assert (alpha[20, [1, 78]] > 200).all()
    assert len(np.unique(alpha)) > 10  # its edge is smooth
    on_blue = colours_at(shown(encode("PNG"), ellipse=True, background=(*BLUE, 255)), (0, 0), (30, 30))
    assert on_blue == [BLUE, RED]
    half = colours_at(shown(encode("PNG"), ellipse=True, background=(*BLUE, 128)), (0, 0), (30, 30))
    assert half == [(*BLUE, 128), (*RED, 255)]
    assert colours_at(shown(encode("PNG", Image.new("RGB", (80, 80))), ellipse=True, format="jpeg"), (0, 0)) == [WHITE]


# Watermarks


@pytest.mark.parametrize("name", [name for name in SAMPLES if "animated" not in name])
def test_every_format_is_a_watermark(shown: Shown, name: str) -> None:
    plain = Image.new("RGB", (200, 100), (1, 2, 3))
    image = shown(encode("PNG", plain), mark=SAMPLES[name], watermark=mark())
    assert image.mode == "RGB"
    changed = np.asarray(image) != np.array((1, 2, 3))
    assert changed[40:, 140:].any()
    assert not changed[:, :140].any()


def test_watermark_position_size_and_opacity(shown: Shown) -> None:
    plain, red = encode("PNG", Image.new("RGB", (200, 100), WHITE)), encode("PNG", Image.new("RGB", (20, 10), RED))
    for position, (left, top) in {"northwest": (2, 2), "southeast": (148, 73), "centre": (75, 37)}.items():
        image = np.asarray(shown(plain, mark=red, watermark=mark(position=position)).convert("RGB"))
        rows, columns = np.nonzero((image != 255).any(axis=2))
        assert (columns.min(), rows.min()) == (left, top)
        assert (columns.max() - left + 1, rows.max() - top + 1) == (50, 25)
        assert tuple(image[top + 10, left + 10]) == RED
    faint = shown(plain, mark=red, watermark=mark(opacity=0.5, position="centre")).getpixel((100, 50))
    assert near(faint, (238, 143, 143), 2)


def test_watermark_stays_inside_the_picture(shown: Shown) -> None:
    plain = encode("PNG", Image.new("RGB", (300, 50), WHITE))
    tall = encode("PNG", Image.new("RGB", (10, 100), RED))
    image = np.asarray(shown(plain, mark=tall, watermark=mark(width=1.0)))
    rows, columns = np.nonzero((image != 255).any(axis=2))
    assert (rows.min(), rows.max()) == (1, 48)
    assert columns.max() - columns.min() + 1 == 5


def test_watermark_on_transparent_pixels(shown: Shown) -> None:
    red = encode("PNG", Image.new("RGBA", (20, 20), (*RED, 128)))
    image = shown(encode("PNG", pictures.transparent()), mark=red, watermark=mark(position="west"))
    assert near(image.getpixel((10, 32)), (*RED, 128), 1)
    assert image.getpixel((40, 5)) == NOTHING


def test_damaged_watermark_is_refused(render_refusal: Callable[..., str]) -> None:
    assert render_refusal(encode("PNG"), mark=encode("PNG")[:90], watermark=mark()) == "damaged-image"
