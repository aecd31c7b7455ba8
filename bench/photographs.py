"""Generates the photographs that the benchmarks upload from the sample landscape, with its EXIF."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

SAMPLE = Path(__file__).parents[1] / "service" / "launcher" / "embedded" / "sample.jpg"

# Width, height, and the bytes of a typical JPEG of a camera of this size.
SIZES = {"s": (640, 480, 22_000), "m": (2000, 1500, 263_000), "l": (6000, 4000, 4_000_000)}

# Of different photographs: typical of cameras.
_GRAIN, _QUALITY = (3.0, 8.0), 82


def photograph(size: str) -> bytes:
    """Returns the landscape in one of SIZES as a JPEG."""
    return render(*SIZES[size])


def render(width: int, height: int, target_bytes: int) -> bytes:
    """Returns the landscape as a JPEG whose size is within a tenth of `target_bytes`.

    Grain is added to reach that size. The quality is the best, from 82 down, with which the landscape is smaller.
    """
    with Image.open(SAMPLE) as sample:
        exif = sample.getexif()
        pixels = np.asarray(sample.convert("RGB").resize((width, height), Image.Resampling.LANCZOS), dtype=np.float32)
    grain = np.random.default_rng(1839).normal(size=(height, width, 1)).astype(np.float32)
    quality = next(quality for quality in range(82, 0, -4) if len(_encode(pixels, exif, quality)) < target_bytes)
    low, high = 0.0, 40.0
    for _ in range(12):
        strength = (low + high) / 2
        body = _encode(pixels + grain * strength, exif, quality)
        if abs(len(body) - target_bytes) < target_bytes / 10:
            break
        low, high = (strength, high) if len(body) < target_bytes else (low, strength)
    return body


def render_different(count: int, width: int, height: int) -> Iterator[bytes]:
    """Yields different photographs: each shows another part of the landscape in other colours, with its own grain."""
    with Image.open(SAMPLE) as sample:
        exif, landscape = sample.getexif(), sample.convert("RGB")
    for number in range(count):
        rng = np.random.default_rng(number)
        part = rng.uniform(0.5, 1) * min(landscape.width / width, landscape.height / height)
        left, top = rng.uniform(0, landscape.width - part * width), rng.uniform(0, landscape.height - part * height)
        box = (left, top, left + part * width, top + part * height)
        pixels = np.asarray(landscape.resize((width, height), Image.Resampling.LANCZOS, box), dtype=np.float32)
        colours = rng.uniform(0.7, 1.1, size=3).astype(np.float32)
        grain = rng.normal(scale=rng.uniform(*_GRAIN), size=(height, width, 1)).astype(np.float32)
        yield _encode(pixels * colours + grain, exif, _QUALITY)


def _encode(pixels: np.ndarray[tuple[int, ...], np.dtype[np.float32]], exif: Image.Exif, quality: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=quality, exif=exif)
    return out.getvalue()
