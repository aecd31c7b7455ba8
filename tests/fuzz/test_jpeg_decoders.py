"""A mutated JPEG has the same verdict whether libjpeg-turbo may decode it or libvips has to."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from service.images.probe import Rejected
from tests.fuzz.mutations import mutate
from tests.fuzz.seeds import seeds_of
from tests.support import pictures
from worker.imaging import probe
from worker.imaging.formats.jpeg import JpegFile

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

_MUTATIONS, _PARTS = 5_000, 10
_MAX_PIXELS = 10_000_000


@cache
def _seeds() -> list[bytes]:
    """Small JPEGs, and larger ones, which the probe decodes at 1/8 and 1/2."""
    noise = random.Random(1839).randbytes(70 * 53 * 3)
    photo = Image.frombytes("RGB", (70, 53), noise).resize((525, 394), Image.Resampling.BICUBIC)
    panorama = photo.crop((0, 0, 270, 21))
    exchanged = pictures.icc_profile(red=(0.1431, 0.0606, 0.7141), blue=(0.4361, 0.2225, 0.0139))
    return [
        *seeds_of("jpeg"),
        pictures.encode("JPEG", photo, quality=60),
        pictures.encode("JPEG", photo, quality=60, progressive=True),
        pictures.encode("JPEG", photo, quality=60, subsampling="4:4:4", optimize=True),
        pictures.encode("JPEG", photo, quality=60, restart_marker_blocks=7),
        pictures.encode("JPEG", photo.convert("L"), quality=60),
        pictures.encode("JPEG", photo.convert("CMYK"), quality=60),
        pictures.encode("JPEG", panorama, icc_profile=exchanged),
    ]


def _verdict(path: Path) -> tuple[object, ...]:
    try:
        found = probe(str(path), max_pixels=_MAX_PIXELS)
    except Rejected as error:
        return error.code, error.kind
    return "accepted", found.width, found.height, found.orientation, found.exif


@pytest.mark.parametrize("part", range(_PARTS))
def test_both_decoders_decide_alike(part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts: Counter[object] = Counter()
    decode_turbo = JpegFile.decode_turbo
    for number in range(part, _MUTATIONS, _PARTS):
        (tmp_path / "picture").write_bytes(mutate("jpeg", _seeds(), number, 1))
        monkeypatch.setattr(JpegFile, "decode_turbo", lambda *_: None)
        expected = _verdict(tmp_path / "picture")
        decoded: list[bool] = []

        def note(file: JpegFile, shrink: int, decoded: list[bool] = decoded) -> object:
            pixels = decode_turbo(file, shrink)
            decoded.append(pixels is not None)
            return pixels

        monkeypatch.setattr(JpegFile, "decode_turbo", note)
        assert _verdict(tmp_path / "picture") == expected, number
        verdicts[expected[0], *decoded] += 1
    assert verdicts["accepted", True] > 30
    assert verdicts["accepted", False] > 10
    assert verdicts["damaged-image", False] > 10
