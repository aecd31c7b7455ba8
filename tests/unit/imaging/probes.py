"""What the tests of probes share."""

from __future__ import annotations

import io

from PIL import Image

from service.images.probe import Probe


def open_preview(result: Probe) -> Image.Image:
    image = Image.open(io.BytesIO(result.mini_preview))
    image.load()
    return image


def near(colour: object, expected: tuple[int, int, int], by: int = 40) -> bool:
    return isinstance(colour, tuple) and max(abs(a - b) for a, b in zip(colour, expected, strict=True)) <= by
