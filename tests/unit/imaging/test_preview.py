"""The preview in a probe."""

from __future__ import annotations

import io
import os

import pytest
from PIL import Image

from tests.support import pictures
from tests.support.imaging import ProbeBytes
from tests.unit.imaging.probes import near, open_preview
from worker.imaging.preview import encode, without_spare_headers

SAMPLES = pictures.every_format()


@pytest.mark.parametrize("size", [(1500, 1000), (48, 48), (640, 480), (500, 33), (10_000, 1), (1, 10_000), (1, 1)])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_preview_fits_and_keeps_the_aspect_ratio(probe: ProbeBytes, form: str, size: tuple[int, int]) -> None:
    result = probe(pictures.encode(form, pictures.landscape(*size)))
    assert len(result.mini_preview) <= 500
    shown = open_preview(result)
    assert shown.format == "JPEG"
    assert max(shown.size) <= 48
    longest = max(shown.size) / max(size)
    assert all(abs(small - max(1, large * longest)) <= 1 for small, large in zip(shown.size, size, strict=True))


@pytest.mark.parametrize("mode", ["RGB", "L", "checks"])
def test_preview_of_noise_fits(probe: ProbeBytes, mode: str) -> None:
    if mode == "checks":
        image = Image.frombytes("L", (47, 48), bytes([0, 255] * (47 * 24)))
    else:
        image = Image.frombytes(mode, (48, 48), os.urandom(48 * 48 * len(mode)))
    assert len(probe(pictures.encode("PNG", image)).mini_preview) <= 500


def test_preview_is_a_baseline_jpeg(probe: ProbeBytes) -> None:
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


def test_preview_uses_its_bytes(probe: ProbeBytes) -> None:
    sizes = [len(probe(pictures.encode("PNG", pictures.landscape(400, 300))).mini_preview) for _ in range(5)]
    assert min(sizes) > 460


def test_preview_flattens_on_white(probe: ProbeBytes) -> None:
    for form in ("PNG", "WEBP", "TIFF", "AVIF"):
        result = probe(pictures.encode(form, pictures.transparent()))
        assert result.has_alpha
        shown = open_preview(result).convert("RGB")
        assert near(shown.getpixel((6, 16)), (255, 255, 255))
        assert near(shown.getpixel((42, 16)), (0, 0, 0))


def test_preview_of_sixteen_bits(probe: ProbeBytes) -> None:
    assert near(open_preview(probe(pictures.deep_png(65535))).getpixel((9, 9)), (128, 128, 128), 8)
    assert near(open_preview(probe(pictures.deep_png(0))).getpixel((9, 9)), (255, 255, 255), 8)


def test_preview_of_cmyk_is_not_inverted(probe: ProbeBytes) -> None:
    for form in ("JPEG", "TIFF"):
        shown = open_preview(probe(pictures.encode(form, pictures.quarters().convert("CMYK"))))
        assert near(shown.getpixel((6, 6)), pictures.RED, 60)
        assert near(shown.getpixel((42, 26)), pictures.WHITE, 20)


def test_preview_applies_the_profile(probe: ProbeBytes) -> None:
    """A profile with exchanged red and blue shows stored red as blue."""
    swapped = pictures.icc_profile(red=(0.1431, 0.0606, 0.7141), blue=(0.4361, 0.2225, 0.0139))
    for form in ("JPEG", "PNG", "WEBP"):
        plain = open_preview(probe(pictures.encode(form, icc_profile=swapped[:-60]))).getpixel((6, 6))
        managed = open_preview(probe(pictures.encode(form, icc_profile=swapped))).getpixel((6, 6))
        assert near(plain, pictures.RED)
        assert near(managed, pictures.BLUE, 60)


def test_preview_of_grey_is_grey(probe: ProbeBytes) -> None:
    assert open_preview(probe(SAMPLES["jpeg, grey"])).mode == "L"


@pytest.mark.parametrize("form", ["GIF", "WEBP"])
def test_preview_is_the_first_frame(probe: ProbeBytes, form: str) -> None:
    result = probe(
        pictures.encode(form, pictures.quarters(), save_all=True, append_images=[Image.new("RGB", (96, 64))] * 2)
    )
    shown = open_preview(result).convert("RGB")
    assert near(shown.getpixel((6, 6)), pictures.RED)
    assert near(shown.getpixel((42, 26)), pictures.WHITE)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_preview_is_encoded_as_pillow_saves(mode: str) -> None:
    image = pictures.landscape(48, 36).convert(mode)
    for table in ([step] * 64 for step in (1, 25, 255)):
        out = io.BytesIO()
        image.save(out, "JPEG", qtables=[table], subsampling="4:2:0", optimize=True)
        assert encode(image, table) == without_spare_headers(out.getvalue())
