"""Originals and renditions that are refused: damaged, missing or too large."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.errors import CATALOGUE
from service.images.probe import Rejected
from service.renditions.transformation import Transformation
from tests.support import hostile_pictures, pictures
from tests.support.imaging import RenderFile, Shown
from tests.support.pictures import encode
from tests.support.renditions import SAMPLES, mark
from worker import imaging


@pytest.mark.parametrize("name", [name for name in SAMPLES if name not in {"svg", "png, animated", "tiff, pages"}])
def test_truncated_original_is_refused(render_refusal: Callable[..., str], name: str) -> None:
    half = SAMPLES[name][: len(SAMPLES[name]) // 2]
    form = "webp" if "animated" in name else "png"
    for params in ({"width": 40}, {"crop": (50, 50)}):
        assert render_refusal(half, format=form, **params) == "damaged-image"


def test_text_is_an_unsupported_original(render_refusal: Callable[..., str]) -> None:
    for data in (b"", b"no picture", b"%PDF-1.7", b"BM" + bytes(100)):
        assert render_refusal(data) == "unsupported-image"


def test_original_with_too_many_pixels_is_refused(render_refusal: Callable[..., str], shown: Shown) -> None:
    for name in ("jpeg", "png", "webp", "gif", "avif", "tiff"):
        assert render_refusal(SAMPLES[name], max_pixels=160 * 120 - 1) == "too-many-pixels"
    assert render_refusal(pictures.png_header(30_000, 30_000)) == "too-many-pixels"
    assert render_refusal(SAMPLES["gif, animated"], format="gif", max_pixels=4 * 96 * 64 - 1) == "too-many-pixels"
    assert shown(SAMPLES["gif, animated"], format="png", max_pixels=96 * 64).size == (96, 64)
    assert (
        render_refusal(encode("PNG"), mark=SAMPLES["jpeg"], watermark=mark(), max_pixels=96 * 64) == "too-many-pixels"
    )


def test_too_large_rendition_is_refused(render_refusal: Callable[..., str], shown: Shown) -> None:
    strip = encode("PNG", Image.new("RGB", (4000, 2)))
    assert "rendition-too-large" in CATALOGUE
    for params in (
        {"width": 8000, "height": 8000, "fit": "fill", "enlarge": True},
        {"width": 10_000, "enlarge": True},
        {"width": 6000, "height": 6000, "fit": "cover", "gravity": "smart", "enlarge": True},
    ):
        assert render_refusal(strip, **params) == "rendition-too-large"
    # Only what is cut out is computed.
    assert shown(strip, width=200, height=200, fit="cover", enlarge=True).size == (200, 200)
    huge = {"width": 4000, "height": 4000, "fit": "fill", "enlarge": True, "format": "gif"}
    assert render_refusal(SAMPLES["gif, animated"], **huge) == "rendition-too-large"


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    transformation = Transformation(format="png", quality=80)
    with pytest.raises(FileNotFoundError):
        imaging.render(str(tmp_path / "none"), transformation, watermark=None, max_pixels=10**6)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "AVIF"])
def test_flipped_bytes_are_rendered_or_refused(render_file: RenderFile, form: str) -> None:
    data = encode(form, pictures.landscape(64, 48))
    random = np.random.default_rng(7)
    for _ in range(12):
        broken = bytearray(data)
        for at in random.integers(0, len(data), 5):
            broken[at] ^= int(random.integers(1, 256))
        try:
            assert render_file(bytes(broken), width=32, metadata="keep", keep_location=True)
        except Rejected as refused:
            assert refused.code in CATALOGUE  # noqa: PT017


@pytest.mark.parametrize("make", [hostile_pictures.gif, hostile_pictures.tiff], ids=["gif", "tiff"])
def test_only_the_selected_page_is_decoded(shown: Shown, make: Callable[[int], bytes]) -> None:
    assert shown(make(3000)).size == (1, 1)
