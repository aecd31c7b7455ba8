"""Renditions by size, fit, gravity, crop, trim, rotation and orientation."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from tests.support import pictures
from tests.support.imaging import Shown
from tests.support.pictures import BLUE, GREEN, RED, WHITE, encode, quarters
from tests.support.renditions import BLACK, NOTHING, likeness, near
from worker import imaging


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.mode == other.mode and one.size == other.size and one.tobytes() == other.tobytes()


def turned_by_orientation(image: Image.Image, orientation: int) -> Image.Image:
    """Returns the stored pixels of a picture that looks like `image` with that orientation."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    return image.transpose(undo[orientation]) if orientation in undo else image


def with_orientation(form: str, image: Image.Image, orientation: int, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(form, turned_by_orientation(image, orientation), exif=exif, **options)


# Of 96 x 64 in quarters. The points are so far from edges that no filter reaches them.
PLACES: list[tuple[dict[str, Any], tuple[int, int], dict[tuple[int, int], tuple[int, ...]]]] = [
    ({"width": 48}, (48, 32), {(4, 4): RED, (43, 4): GREEN, (4, 27): BLUE, (43, 27): WHITE, (19, 11): RED}),
    ({"height": 32}, (48, 32), {(19, 11): RED, (28, 20): WHITE}),
    ({"width": 200}, (96, 64), {(4, 4): RED, (91, 59): WHITE}),
    ({"width": 192, "enlarge": True}, (192, 128), {(88, 56): RED, (103, 56): GREEN, (88, 71): BLUE, (103, 71): WHITE}),
    ({"percent": 50.0}, (48, 32), {(19, 11): RED, (28, 20): WHITE}),
    ({"width": 48, "height": 48}, (48, 32), {(19, 11): RED, (28, 20): WHITE}),
    ({"width": 48, "height": 48, "fit": "scale-down"}, (48, 32), {(19, 11): RED}),
    ({"width": 32, "height": 48, "fit": "fill"}, (32, 48), {(11, 19): RED, (20, 19): GREEN, (11, 28): BLUE}),
    ({"width": 32, "height": 32, "fit": "cover"}, (32, 32), {(11, 11): RED, (20, 11): GREEN, (11, 20): BLUE}),
    (
        {"width": 32, "height": 32, "fit": "cover", "gravity": "west"},
        (32, 32),
        {(19, 11): RED, (28, 11): GREEN, (19, 20): BLUE},
    ),
    (
        {"width": 32, "height": 32, "fit": "cover", "gravity": "east"},
        (32, 32),
        {(3, 11): RED, (12, 11): GREEN, (3, 20): BLUE, (12, 20): WHITE},
    ),
    ({"width": 48, "height": 16, "fit": "cover", "gravity": "north"}, (48, 16), {(19, 11): RED, (28, 11): GREEN}),
    ({"width": 48, "height": 16, "fit": "cover", "gravity": "south"}, (48, 16), {(19, 4): BLUE, (28, 4): WHITE}),
    ({"width": 32, "height": 32, "fit": "cover", "gravity": (0.0, 0.0)}, (32, 32), {(19, 11): RED, (28, 11): GREEN}),
    ({"width": 32, "height": 32, "fit": "cover", "gravity": (0.4, 0.5)}, (32, 32), {(16, 11): RED, (25, 11): GREEN}),
    (
        {"width": 64, "height": 64, "fit": "pad"},
        (64, 64),
        {(4, 4): WHITE, (4, 20): RED, (59, 43): WHITE, (4, 43): BLUE},
    ),
    (
        {"width": 64, "height": 64, "fit": "pad", "background": (*BLUE, 255), "gravity": "north"},
        (64, 64),
        {(4, 4): RED, (59, 59): BLUE, (59, 30): WHITE, (4, 50): BLUE},
    ),
    (
        {"width": 64, "height": 64, "fit": "pad", "background": NOTHING, "gravity": "south"},
        (64, 64),
        {(4, 4): NOTHING, (4, 30): (*RED, 255), (59, 59): (*WHITE, 255)},
    ),
    ({"width": 64, "height": 64, "fit": "pad", "gravity": "smart"}, (64, 64), {(4, 4): WHITE, (4, 20): RED}),
    ({"crop": (48, 32), "gravity": "northwest"}, (48, 32), {(0, 0): RED, (47, 31): RED}),
    ({"crop": (48, 32), "gravity": "northeast"}, (48, 32), {(0, 0): GREEN, (47, 31): GREEN}),
    ({"crop": (48, 32), "gravity": "southwest"}, (48, 32), {(0, 0): BLUE, (47, 31): BLUE}),
    ({"crop": (48, 32), "gravity": "southeast"}, (48, 32), {(0, 0): WHITE, (47, 31): WHITE}),
    ({"crop": (48, 32)}, (48, 32), {(23, 15): RED, (24, 15): GREEN, (23, 16): BLUE, (24, 16): WHITE}),
    ({"crop": (48, 32), "width": 24}, (24, 16), {(7, 4): RED, (16, 4): GREEN, (7, 11): BLUE, (16, 11): WHITE}),
    ({"crop": (500, 10), "gravity": "north"}, (96, 10), {(0, 0): RED, (95, 9): GREEN}),
]


@pytest.mark.parametrize(("params", "size", "points"), PLACES, ids=lambda value: str(value)[:60])
def test_every_orientation_is_rendered_upright(
    shown: Shown, params: dict[str, Any], size: tuple[int, int], points: dict[tuple[int, int], tuple[int, ...]]
) -> None:
    for form in ("PNG", "TIFF"):
        image = shown(encode(form), **params)
        assert image.size == size
        for point, colour in points.items():
            assert near(image.getpixel(point), colour), (form, point, image.getpixel(point))


def test_smart_gravity_finds_the_subject(shown: Shown) -> None:
    scene = Image.new("RGB", (400, 100), (120, 120, 120))
    ImageDraw.Draw(scene).ellipse((310, 20, 370, 80), fill=(250, 200, 30), outline=BLACK, width=4)
    for params in ({"width": 100, "height": 100, "fit": "cover"}, {"crop": (100, 100)}):
        image = shown(encode("PNG", scene), gravity="smart", **params)
        assert image.size == (100, 100)
        yellow = sum(near(colour, (250, 200, 30), 20) for colour in image.convert("RGB").get_flattened_data())
        assert yellow > 1500


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotate_flip_and_flop_in_order(shown: Shown, orientation: int) -> None:
    """Without a resize every pixel is known: upright, then `rotate`, then `flip` and `flop`, then the crop."""
    upright = pictures.landscape(40, 24)
    data = with_orientation("PNG", upright, orientation)
    for rotate, flip, flop in itertools.product((0, 90, 180, 270), (False, True), (False, True)):
        expected = upright.rotate(-rotate, expand=True)
        if flip:
            expected = expected.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        if flop:
            expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        turns = {"rotate": rotate, "flip": flip, "flop": flop}
        assert same(shown(data, **turns), expected)
        width, height = expected.width - 7, expected.height - 5
        cut = expected.crop((expected.width - width, 0, expected.width, height))
        assert same(shown(data, **turns, crop=(width, height), gravity="northeast"), cut)
        narrow = expected.crop((expected.width - width, 0, expected.width, expected.height))
        covered = shown(data, **turns, width=width, height=expected.height, fit="cover", gravity="northeast")
        assert same(covered, narrow)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "WEBP", "TIFF"])
def test_rendition_matches_the_preview(shown: Shown, tmp_path: Path, form: str, orientation: int) -> None:
    data = with_orientation(form, quarters(480, 320), orientation)
    (tmp_path / "same").write_bytes(data)
    probed = imaging.probe(str(tmp_path / "same"), max_pixels=10**6)
    preview = Image.open(io.BytesIO(probed.mini_preview))
    image = shown(data, width=preview.width)
    assert image.size == preview.size == (48, 32)
    assert likeness(image, preview) > 18
    assert likeness(image, preview.rotate(180)) < 12
    assert near(image.convert("RGB").getpixel((8, 8)), RED, 10)


def test_trim_removes_the_colour_of_the_corner(shown: Shown) -> None:
    framed = Image.new("RGB", (200, 120), (10, 20, 30))
    framed.paste(quarters(), (30, 40))
    assert same(shown(encode("PNG", framed), trim=10.0), quarters())
    turned = shown(with_orientation("PNG", framed, 6), trim=10.0, rotate=90, width=32)
    assert turned.size == (32, 48)
    assert near(turned.getpixel((26, 6)), RED)
    see_through = Image.new("RGBA", (200, 120), NOTHING)
    see_through.paste(quarters(80, 60), (60, 30))
    assert shown(encode("PNG", see_through), trim=10.0).size == (60 * 80 // 60, 60)


def test_trim_threshold_is_a_distance_of_colours(shown: Shown) -> None:
    image = Image.new("RGB", (60, 60), (100, 100, 100))
    image.paste((120, 100, 100), (20, 20, 40, 40))
    assert shown(encode("PNG", image), trim=15.0).size == (20, 20)
    assert shown(encode("PNG", image), trim=25.0).size == (60, 60)


def test_trim_keeps_a_picture_of_one_colour(shown: Shown) -> None:
    assert shown(encode("PNG", Image.new("RGB", (30, 20), RED)), trim=10.0, width=15).size == (15, 10)
