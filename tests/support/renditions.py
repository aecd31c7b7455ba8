"""Renditions in tests: pictures to render, colours at points, and how alike two pictures are."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from service.ids import ImageId
from service.renditions.transformation import Watermark
from tests.support import pictures

SAMPLES = pictures.every_format()
FORMATS = ("jpeg", "png", "webp", "avif", "gif")
BLACK, NOTHING = (0, 0, 0), (0, 0, 0, 0)


def near(colour: object, expected: tuple[int, ...], by: int = 6) -> bool:
    return isinstance(colour, tuple) and max(abs(a - b) for a, b in zip(colour, expected, strict=True)) <= by


def colours_at(image: Image.Image, *points: tuple[int, int]) -> list[object]:
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return [image.convert(mode).getpixel(point) for point in points]


def likeness(image: Image.Image, reference: Image.Image) -> float:
    """Returns the peak signal-to-noise ratio in dB."""
    assert image.size == reference.size
    one, other = (np.asarray(picture.convert("RGB"), dtype=float) for picture in (image, reference))
    error = float(((one - other) ** 2).mean())
    return 99.0 if error == 0 else float(10 * np.log10(255**2 / error))


def mark(**params: Any) -> Watermark:
    return Watermark(image_id=ImageId("mark"), **params)
