"""Renditions of animations: their frames, delays and loops, and one frame of them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image, ImageSequence

from tests.support.imaging import Shown
from tests.support.pictures import BLUE, GREEN, RED, WHITE, encode
from tests.support.renditions import BLACK, mark, near


def animation(form: str, **params: Any) -> bytes:
    colours = (RED, GREEN, BLUE)
    first, *rest = (Image.new("RGB", (60, 40), colour) for colour in colours)
    return encode(form, first, save_all=True, append_images=rest, duration=[50, 120, 300], loop=3, **params)


@pytest.mark.parametrize("target", ["gif", "webp"])
@pytest.mark.parametrize("source", ["GIF", "WEBP"])
def test_animation_keeps_frames_delays_and_loops(shown: Shown, source: str, target: str) -> None:
    data = animation(source, lossless=True) if source == "WEBP" else animation(source)
    for params in ({"width": 30}, {"crop": (30, 20), "rotate": 180}):
        image = shown(data, format=target, **params)
        assert image.size == (30, 20)
        assert getattr(image, "n_frames", 1) == 3
        # A GIF counts how often it is repeated, a WebP how often it is played.
        assert image.info["loop"] == 3 + (target == "webp") - (source == "WEBP")
        for frame, delay, colour in zip(ImageSequence.Iterator(image), (50, 120, 300), (RED, GREEN, BLUE), strict=True):
            frame.load()
            assert frame.info["duration"] == delay
            assert near(frame.convert("RGB").getpixel((15, 10)), colour, 12)


def test_every_effect_applies_to_every_frame(shown: Shown) -> None:
    image = shown(
        animation("GIF"),
        format="webp",
        width=60,
        height=60,
        fit="pad",
        background=(*WHITE, 255),
        saturation=0.0,
        mark=encode("PNG", Image.new("RGB", (10, 10), BLACK)),
        watermark=mark(),
    )
    assert image.size == (60, 60)
    for frame in ImageSequence.Iterator(image):
        canvas, middle, corner = (frame.convert("RGB").getpixel(at) for at in ((4, 4), (30, 30), (54, 54)))
        assert near(canvas, WHITE, 8)
        assert isinstance(middle, tuple)
        assert max(middle) - min(middle) < 10
        assert max(middle) < 200
        assert near(corner, BLACK, 12)


def test_still_format_shows_the_selected_frame(shown: Shown) -> None:
    for data in (animation("GIF"), animation("WEBP"), animation("TIFF")):
        for params, colour in (({}, RED), ({"frame": 1}, RED), ({"frame": 2}, GREEN), ({"frame": 9}, BLUE)):
            assert near(shown(data, width=30, **params).convert("RGB").getpixel((9, 9)), colour, 12)
    alone = shown(animation("GIF"), format="gif", frame=3)
    assert getattr(alone, "n_frames", 1) == 1
    assert near(alone.convert("RGB").getpixel((9, 9)), BLUE, 12)


def test_hidden_frames_are_refused(render_refusal: Callable[..., str]) -> None:
    """Chunks with the type of frames, from which the decoder makes no frame."""
    data = animation("WEBP") + (b"ANMF" + bytes(4)) * 5
    assert render_refusal(data[:4] + struct.pack("<I", len(data) - 8) + data[8:], format="webp") == "damaged-image"


def test_frames_after_the_end_are_ignored(shown: Shown) -> None:
    data = animation("WEBP")
    behind = shown(data + (b"ANMF" + bytes(4)) * 5, format="webp")
    assert behind.tobytes() == shown(data, format="webp").tobytes()
