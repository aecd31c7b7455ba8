"""The share of damage in compressed data that is detected: the figures of docs/refusals.md."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from service.images.probe import Rejected
from tests.support import hostile_pictures, pictures
from worker import imaging

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[3] / "docs" / "refusals.md"
POSITIONS = 40
DAMAGED_BYTES = 64


def fill(rng: random.Random, data: bytearray, at: int) -> None:
    data[at : at + DAMAGED_BYTES] = bytes(len(data[at : at + DAMAGED_BYTES]))


def scramble(rng: random.Random, data: bytearray, at: int) -> None:
    data[at : at + DAMAGED_BYTES] = rng.randbytes(len(data[at : at + DAMAGED_BYTES]))


def flip(rng: random.Random, data: bytearray, at: int) -> None:
    data[at] ^= 1 << rng.randrange(8)


# In the order of the table's columns.
DAMAGES: tuple[Callable[[random.Random, bytearray, int], None], ...] = (fill, scramble, flip)


def photograph() -> Image.Image:
    """Returns noise of several scales, equal in every run, because the figures depend on it."""
    rng = random.Random(1839)
    photo = Image.new("RGB", (400, 300), "grey")
    for divisor in (64, 16, 4, 1):
        size = (400 // divisor, 300 // divisor)
        noise = Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1]))
        photo = Image.blend(photo, noise.resize(photo.size, Image.Resampling.BICUBIC), 0.05 + divisor / 160)
    return photo


@cache
def samples() -> dict[str, bytes]:
    photo = photograph()
    return {
        "JPEG": pictures.encode("JPEG", photo),
        "JPEG, progressive": pictures.encode("JPEG", photo, progressive=True),
        "JPEG, restart markers": pictures.encode("JPEG", photo, restart_marker_rows=1),
        "PNG": pictures.encode("PNG", photo),
        "WebP": pictures.encode("WEBP", photo),
        "WebP, lossless": pictures.encode("WEBP", photo, lossless=True),
        "GIF": pictures.encode("GIF", photo.quantize(64)),
        "AVIF": pictures.encode("AVIF", photo, speed=10),
        "TIFF": pictures.encode("TIFF", photo),
        "TIFF, LZW": pictures.encode("TIFF", photo, compression="tiff_lzw"),
        "TIFF, Deflate": pictures.encode("TIFF", photo, compression="tiff_adobe_deflate"),
        "HEIC, 48 small tiles": hostile_pictures.heic_grid(6, 8, 500, 380, apart=True),
    }


def documented() -> dict[str, list[int]]:
    rows = re.findall(r"^\| ([A-Z][^|]+) \| (\d+) \| (\d+) \| (\d+) \|$", DOCS.read_text(), re.MULTILINE)
    return {name: [int(share) for share in shares] for name, *shares in rows}


def test_every_sample_is_documented() -> None:
    assert list(documented()) == list(samples())


@pytest.mark.parametrize("name", documented())
def test_share_of_detected_damage(tmp_path: Path, name: str) -> None:
    path = tmp_path / "picture"
    data = samples()[name]
    measured = []
    for damage in DAMAGES:
        refused = 0
        for number in range(POSITIONS):
            rng = random.Random(number)
            damaged = bytearray(data)
            damage(rng, damaged, rng.randrange(len(data) // 10, len(data) * 95 // 100))
            path.write_bytes(damaged)
            try:
                imaging.probe(str(path), max_pixels=1_000_000)
            except Rejected:
                refused += 1
        measured.append(refused * 100 // POSITIONS)
    print(f"{name}: {measured} % refused of zeros, noise and single bits")  # noqa: T201
    assert all(share >= floor for share, floor in zip(measured, documented()[name], strict=True)), measured
