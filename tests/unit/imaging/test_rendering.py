from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageSequence

from service.errors import CATALOGUE
from service.ids import ImageId
from service.images.probe import Rejected
from service.renditions.transformation import Transformation, Watermark
from tests.support import hostile_pictures, pictures
from tests.support.pictures import BLUE, GREEN, RED, WHITE, ascii_entry, encode, exif_block, quarters
from worker import imaging

Pixels = np.ndarray[Any, np.dtype[Any]]
RenderBytes = Callable[..., bytes]
Shown = Callable[..., Image.Image]

SAMPLES = pictures.every_format()
FORMATS = ("jpeg", "png", "webp", "avif", "gif")
BLACK, NOTHING = (0, 0, 0), (0, 0, 0, 0)


@pytest.fixture
def render(tmp_path: Path) -> RenderBytes:
    def run(data: bytes, *, mark: bytes | None = None, max_pixels: int = 100_000_000, **params: Any) -> bytes:
        path, mark_path = tmp_path / "picture", tmp_path / "mark"
        path.write_bytes(data)
        if mark is not None:
            mark_path.write_bytes(mark)
        transformation = Transformation(**{"format": "png", "quality": 90, **params})
        return imaging.render(
            str(path), transformation, watermark=None if mark is None else str(mark_path), max_pixels=max_pixels
        )

    return run


@pytest.fixture
def shown(render: RenderBytes) -> Shown:
    def run(data: bytes, **params: Any) -> Image.Image:
        image = Image.open(io.BytesIO(render(data, **params)))
        image.load()
        return image

    return run


@pytest.fixture
def refusal(render: RenderBytes) -> Callable[..., str]:
    def run(data: bytes, **params: Any) -> str:
        with pytest.raises(Rejected) as caught:
            render(data, **params)
        return caught.value.code

    return run


def near(colour: object, expected: tuple[int, ...], by: int = 6) -> bool:
    return isinstance(colour, tuple) and max(abs(a - b) for a, b in zip(colour, expected, strict=True)) <= by


def colours_at(image: Image.Image, *points: tuple[int, int]) -> list[object]:
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return [image.convert(mode).getpixel(point) for point in points]


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.mode == other.mode and one.size == other.size and one.tobytes() == other.tobytes()


def likeness(image: Image.Image, reference: Image.Image) -> float:
    """Returns the peak signal-to-noise ratio in dB."""
    assert image.size == reference.size
    one, other = (np.asarray(picture.convert("RGB"), dtype=float) for picture in (image, reference))
    error = float(((one - other) ** 2).mean())
    return 99.0 if error == 0 else float(10 * np.log10(255**2 / error))


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


# Formats


@pytest.mark.parametrize("name", SAMPLES)
def test_every_format_is_converted_to_every_other(shown: Shown, name: str) -> None:
    for form in FORMATS:
        image = shown(SAMPLES[name], format=form, width=30, height=30, fit="cover")
        assert (image.format or "").lower() == form
        assert image.size == (30, 30)
        assert image.info.keys().isdisjoint({"icc_profile", "exif", "xmp", "comment"})


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF"])
def test_every_decoder_keeps_colours(shown: Shown, form: str) -> None:
    for size in ({}, {"width": 24}):
        image = shown(encode(form, quarters(192, 128)), **size)
        x, y = image.width // 4, image.height // 4
        result = colours_at(image, (x, y), (3 * x, y), (x, 3 * y), (3 * x, 3 * y))
        assert all(map(near, result, (RED, GREEN, BLUE, WHITE), [12] * 4)), result


def test_heic_and_svg_keep_colours(shown: Shown) -> None:
    heic = shown(SAMPLES["heic"], width=16)
    assert heic.size == (16, 24)
    top, bottom = colours_at(heic, (8, 2), (8, 21))
    assert isinstance(top, tuple)
    assert isinstance(bottom, tuple)
    assert top != bottom
    drawing = shown(pictures.SVG, width=960, enlarge=True)
    assert drawing.size == (960, 640)
    # Drawn anew, and not enlarged: the edge is one.
    assert near(drawing.getpixel((478, 320)), (*RED, 255), 2)
    assert drawing.getpixel((481, 320))[3] == 0  # type: ignore[index]


@pytest.mark.parametrize("form", ["jpeg", "webp", "avif"])
def test_quality_costs_bytes(render: RenderBytes, form: str) -> None:
    low, high = (len(render(SAMPLES["png"], format=form, quality=quality)) for quality in (20, 90))
    assert low * 1.5 < high


def test_jpeg_of_noise_at_best_quality_is_complete(shown: Shown) -> None:
    noise = Image.frombytes("RGB", (400, 300), np.random.default_rng(1).bytes(400 * 300 * 3))
    image = shown(encode("PNG", noise), format="jpeg", quality=100)
    assert likeness(image, noise) > 35


# Sizes and places


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


# How good it looks


def shifted(image: Image.Image, width: int, height: int, filtered: Image.Resampling) -> Image.Image:
    """Resizes with the left and upper edge half a pixel of the result off."""
    x, y = image.width / width / 2, image.height / height / 2
    return image.resize((width, height), filtered, box=(x, y, image.width, image.height))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize("size", [(800, 600), (803, 597)], ids=str)
def test_downscaling_matches_pillow(shown: Shown, form: str, size: tuple[int, int]) -> None:
    photo = pictures.landscape(*size)
    data = encode(form, photo, **({"quality": 95} if form != "PNG" else {}))
    decoded = Image.open(io.BytesIO(data)).convert("RGB")
    for width in (97, 160, 300):  # a JPEG is decoded 8, 4 and 2 times smaller
        image = shown(data, width=width)
        lanczos = Image.Resampling.LANCZOS
        assert likeness(image, decoded.resize(image.size, lanczos)) > 37.5
        assert likeness(image, shifted(decoded, *image.size, lanczos)) < 37.5


def test_enlargement_does_not_shift_pixels(shown: Shown) -> None:
    photo = pictures.landscape(100, 80)
    image = shown(encode("PNG", photo), width=300, enlarge=True)
    cubic = Image.Resampling.BICUBIC
    assert likeness(image, photo.resize((300, 240), cubic)) > 55
    assert likeness(image, shifted(photo, 300, 240, cubic)) < 55


# Colours of the source


def test_rendition_applies_and_drops_the_profile(shown: Shown) -> None:
    """A profile with exchanged red and blue shows stored red as blue."""
    swapped = pictures.icc_profile(red=(0.1431, 0.0606, 0.7141), blue=(0.4361, 0.2225, 0.0139))
    steps: list[dict[str, Any]] = [{"width": 48}, {"crop": (96, 64)}, {"trim": 0.0}]
    for form, params in itertools.product(("JPEG", "PNG", "WEBP"), steps):
        image = shown(encode(form, icc_profile=swapped), **params)
        # Its curve is that of 2.2, which is nearly sRGB's.
        assert near(image.convert("RGB").getpixel((6, 6)), BLUE, 20)
        assert "icc_profile" not in image.info


def test_wide_gamut_becomes_srgb(shown: Shown) -> None:
    """Display P3 by its colorants, with a gamma of 2.2. Colours in both gamuts are computed by its matrices."""
    red, green, blue = (0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841)
    wide = pictures.icc_profile(red=red, green=green, blue=blue)
    stored = (180, 120, 100)
    image = shown(encode("PNG", Image.new("RGB", (60, 60), stored), icc_profile=wide), width=30)
    to_xyz = np.array([red, green, blue]).T
    srgb = np.array([[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])
    linear = np.linalg.inv(srgb) @ to_xyz @ (np.array(stored) / 255) ** (0x0233 / 256)
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    expected = tuple(round(255 * value) for value in curve)
    assert max(abs(a - b) for a, b in zip(expected, stored, strict=True)) >= 8
    assert near(image.getpixel((15, 15)), expected, 3)


def test_sixteen_bits_become_eight(shown: Shown) -> None:
    for params in ({}, {"width": 48}, {"trim": 1.0}):
        image = shown(pictures.deep_png(32768), **params)
        assert image.mode == "RGBA"
        assert near(image.getpixel((9, 9)), (128, 128, 128, 128), 1)
        flat = shown(pictures.deep_png(32768), format="jpeg", **params)
        assert near(flat.getpixel((9, 9)), (191, 191, 191), 3)


def test_cmyk_becomes_rgb(shown: Shown) -> None:
    for form in ("JPEG", "TIFF"):
        image = shown(encode(form, Image.new("CMYK", (64, 64), (0, 255, 255, 0))), width=32)
        red, green, blue = image.getpixel((16, 16))  # type: ignore[misc]
        assert image.mode == "RGB"
        assert red > 200
        assert max(green, blue) < 80


def test_grey_stays_grey_without_colours(shown: Shown) -> None:
    grey = encode("PNG", Image.new("L", (40, 20), 90))
    assert shown(grey, width=20).mode == "L"
    assert shown(grey, width=20, format="jpeg").mode == "L"
    padded = shown(grey, width=40, height=40, fit="pad", background=(*RED, 255))
    assert colours_at(padded, (2, 2), (20, 20)) == [RED, (90, 90, 90)]


# Alpha


def test_alpha_is_kept_if_the_format_has_it(shown: Shown) -> None:
    data = encode("PNG", pictures.transparent())
    for form in ("png", "webp", "avif", "gif"):
        left, right = colours_at(shown(data, format=form, width=48), (8, 16), (40, 16))
        assert isinstance(left, tuple)
        assert left[3] == 0
        assert near(right, (0, 0, 0, 255), 8)
    assert colours_at(shown(data, format="jpeg", width=48), (8, 16), (40, 16)) == [WHITE, BLACK]


def test_background_fills_transparent_pixels(shown: Shown) -> None:
    data = encode("PNG", pictures.transparent())
    for form in ("png", "webp", "avif", "jpeg"):
        image = shown(data, format=form, background=(*BLUE, 255))
        assert image.mode == "RGB"
        assert all(map(near, colours_at(image, (8, 16), (88, 16)), (BLUE, BLACK), (12, 12)))
    half = colours_at(shown(data, background=(*BLUE, 128)), (8, 16), (88, 16))
    assert half == [(*BLUE, 128), (0, 0, 0, 255)]
    over_white = colours_at(shown(data, format="jpeg", background=(0, 0, 0, 51)), (8, 16))[0]
    assert near(over_white, (204, 204, 204), 2)
    assert colours_at(shown(data, background=NOTHING), (8, 16)) == [NOTHING]


def test_transparent_pixels_do_not_bleed(shown: Shown) -> None:
    image = Image.new("RGBA", (80, 80), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (40, 0, 80, 80))
    result = np.asarray(shown(encode("PNG", image), width=30))
    assert result[result[:, :, 3] > 8][:, 0].max() <= 16


def test_canvas_is_transparent_only_with_alpha(shown: Shown) -> None:
    box = {"width": 100, "height": 100, "fit": "pad"}
    assert colours_at(shown(encode("PNG", pictures.transparent()), **box), (50, 5)) == [NOTHING]
    assert colours_at(shown(encode("PNG", pictures.transparent()), format="jpeg", **box), (50, 5)) == [WHITE]
    assert shown(encode("PNG"), **box).mode == "RGB"


# Steps


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


def mark(**params: Any) -> Watermark:
    return Watermark(image_id=ImageId("mark"), **params)


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


def test_damaged_watermark_is_refused(refusal: Callable[..., str]) -> None:
    assert refusal(encode("PNG"), mark=encode("PNG")[:90], watermark=mark()) == "damaged-image"


# Animations


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


# Metadata

GPS = [(1, 2, 2, b"N\0\0\0"), pictures.rationals(2, (52, 1), (30, 1), (0, 1))]
CAMERA = [ascii_entry(0x010F, b"Daguerre"), ascii_entry(0x013B, b"Ann Author"), ascii_entry(0x8298, b"(c) Ann")]
PHOTO = [pictures.rationals(0x829A, (1, 60)), ascii_entry(0x9003, b"2026:01:02 03:04:05"), (0x927C, 7, 8, b"MAKERNOT")]
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6">Somewhere</a></x:xmpmeta>'
ARTIST, COPYRIGHT, MAKE, ORIENTATION, EXIF_IFD, GPS_IFD = 0x013B, 0x8298, 0x010F, 0x0112, 0x8769, 0x8825


def picture_with_metadata(form: str) -> bytes:
    upright = struct.pack("<HH", 6, 0)
    block = exif_block([*CAMERA[:1], (ORIENTATION, 3, 1, upright), *CAMERA[1:]], PHOTO, GPS)
    params: dict[str, Any] = {"xmp": XMP} if form in {"JPEG", "WEBP"} else {}
    return encode(form, exif=b"Exif\0\0" + block, **params)


@pytest.mark.parametrize("target", ["jpeg", "png", "webp", "avif"])
@pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP"])
def test_metadata_parameter_selects_tags(shown: Shown, source: str, target: str) -> None:
    def metadata_of(**params: Any) -> tuple[Image.Image, Image.Exif]:
        image = shown(picture_with_metadata(source), format=target, width=32, **params)
        assert image.size == (32, 48)
        assert near(image.convert("RGB").getpixel((25, 6)), RED, 30)
        return image, image.getexif()

    image, exif = metadata_of()
    assert not exif
    assert image.info.keys().isdisjoint({"exif", "xmp", "icc_profile", "photoshop", "comment"})
    image, exif = metadata_of(metadata="copyright")
    assert dict(exif) == {ARTIST: "Ann Author", COPYRIGHT: "(c) Ann"}
    assert "xmp" not in image.info
    image, exif = metadata_of(metadata="keep")
    assert (exif[MAKE], exif[ARTIST], exif[ORIENTATION]) == ("Daguerre", "Ann Author", 1)
    assert dict(exif.get_ifd(EXIF_IFD)) == {0x829A: 1 / 60, 0x9003: "2026:01:02 03:04:05"}
    assert not exif.get_ifd(GPS_IFD)
    assert "xmp" not in image.info
    image, exif = metadata_of(metadata="keep", keep_location=True)
    assert exif.get_ifd(GPS_IFD)[2] == (52, 30, 0)
    assert exif[ORIENTATION] == 1
    if source != "PNG":
        assert image.info["xmp"].rstrip(b"\0") == XMP.replace(b'"6"', b'"1"')


def test_location_is_only_in_requested_renditions(render: RenderBytes) -> None:
    secret = [(1, 2, 2, b"N\0\0\0"), ascii_entry(0x1D, b"2026:11:22"), ascii_entry(0x12, b"SECRET-DATUM")]
    data = encode("JPEG", exif=b"Exif\0\0" + exif_block(CAMERA, PHOTO, secret), xmp=XMP)
    for form, metadata in itertools.product(FORMATS, ("none", "copyright", "keep")):
        result = render(data, format=form, metadata=metadata)
        assert b"SECRET-DATUM" not in result
        assert b"Somewhere" not in result
        assert b"MAKERNOT" not in result


def test_thumbnail_is_removed(render: RenderBytes) -> None:
    """A thumbnail is in a second directory, and shows what a crop removed."""
    thumbnail = encode("JPEG", Image.new("RGB", (16, 16)))
    block = exif_block(CAMERA)
    at = len(block)
    second = struct.pack("<HHHIIHHII", 2, 0x0201, 4, 1, at + 30, 0x0202, 4, 1, len(thumbnail)) + bytes(4)
    first_end = 8 + 2 + 12 * len(CAMERA)
    block = block[:first_end] + struct.pack("<I", at) + block[first_end + 4 :] + second + thumbnail
    data = encode("JPEG", exif=b"Exif\0\0" + block)
    assert data.count(b"\xff\xd8\xff") == 2
    for keep_location in (False, True):
        assert render(data, format="jpeg", metadata="keep", keep_location=keep_location).count(b"\xff\xd8\xff") == 1


def test_tiff_tags_are_kept(shown: Shown) -> None:
    exif = Image.Exif()
    exif[ARTIST], exif[COPYRIGHT], exif[MAKE] = "Ann Author", "(c) Ann", "Daguerre"
    image = shown(encode("TIFF", exif=exif), format="jpeg", metadata="keep")
    assert dict(image.getexif()) == {ARTIST: "Ann Author", COPYRIGHT: "(c) Ann", MAKE: "Daguerre", ORIENTATION: 1}


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"II*\0",
        b"nothing at all",
        exif_block(CAMERA)[:40],
        b"II*\0\xff\xff\xff\xff",
        exif_block(CAMERA)[:20] + bytes(90),
    ],
)
def test_broken_exif_is_left_out(shown: Shown, block: bytes) -> None:
    for metadata in ("copyright", "keep"):
        image = shown(encode("JPEG", exif=b"Exif\0\0" + block), format="jpeg", metadata=metadata)
        assert set(image.getexif()) <= {MAKE, ORIENTATION}


# What is refused


@pytest.mark.parametrize("name", [name for name in SAMPLES if name not in {"svg", "png, animated", "tiff, pages"}])
def test_truncated_original_is_refused(refusal: Callable[..., str], name: str) -> None:
    half = SAMPLES[name][: len(SAMPLES[name]) // 2]
    form = "webp" if "animated" in name else "png"
    for params in ({"width": 40}, {"crop": (50, 50)}):
        assert refusal(half, format=form, **params) == "damaged-image"


def test_text_is_an_unsupported_original(refusal: Callable[..., str]) -> None:
    for data in (b"", b"no picture", b"%PDF-1.7", b"BM" + bytes(100)):
        assert refusal(data) == "unsupported-image"


def test_original_with_too_many_pixels_is_refused(refusal: Callable[..., str], shown: Shown) -> None:
    for name in ("jpeg", "png", "webp", "gif", "avif", "tiff"):
        assert refusal(SAMPLES[name], max_pixels=160 * 120 - 1) == "too-many-pixels"
    assert refusal(pictures.png_header(30_000, 30_000)) == "too-many-pixels"
    assert refusal(SAMPLES["gif, animated"], format="gif", max_pixels=4 * 96 * 64 - 1) == "too-many-pixels"
    assert shown(SAMPLES["gif, animated"], format="png", max_pixels=96 * 64).size == (96, 64)
    assert refusal(encode("PNG"), mark=SAMPLES["jpeg"], watermark=mark(), max_pixels=96 * 64) == "too-many-pixels"


def test_too_large_rendition_is_refused(refusal: Callable[..., str], shown: Shown) -> None:
    strip = encode("PNG", Image.new("RGB", (4000, 2)))
    assert "rendition-too-large" in CATALOGUE
    for params in (
        {"width": 8000, "height": 8000, "fit": "fill", "enlarge": True},
        {"width": 10_000, "enlarge": True},
        {"width": 6000, "height": 6000, "fit": "cover", "gravity": "smart", "enlarge": True},
    ):
        assert refusal(strip, **params) == "rendition-too-large"
    # Only what is cut out is computed.
    assert shown(strip, width=200, height=200, fit="cover", enlarge=True).size == (200, 200)
    huge = {"width": 4000, "height": 4000, "fit": "fill", "enlarge": True, "format": "gif"}
    assert refusal(SAMPLES["gif, animated"], **huge) == "rendition-too-large"


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    transformation = Transformation(format="png", quality=80)
    with pytest.raises(FileNotFoundError):
        imaging.render(str(tmp_path / "none"), transformation, watermark=None, max_pixels=10**6)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "AVIF"])
def test_flipped_bytes_are_rendered_or_refused(render: RenderBytes, form: str) -> None:
    data = encode(form, pictures.landscape(64, 48))
    random = np.random.default_rng(7)
    for _ in range(12):
        broken = bytearray(data)
        for at in random.integers(0, len(data), 5):
            broken[at] ^= int(random.integers(1, 256))
        try:
            assert render(bytes(broken), width=32, metadata="keep", keep_location=True)
        except Rejected as refused:
            assert refused.code in CATALOGUE  # noqa: PT017


def test_hidden_frames_are_refused(refusal: Callable[..., str]) -> None:
    """Chunks with the type of frames, from which the decoder makes no frame."""
    data = animation("WEBP") + (b"ANMF" + bytes(4)) * 5
    assert refusal(data[:4] + struct.pack("<I", len(data) - 8) + data[8:], format="webp") == "damaged-image"


def test_frames_after_the_end_are_ignored(shown: Shown) -> None:
    data = animation("WEBP")
    behind = shown(data + (b"ANMF" + bytes(4)) * 5, format="webp")
    assert behind.tobytes() == shown(data, format="webp").tobytes()


@pytest.mark.parametrize("make", [hostile_pictures.gif, hostile_pictures.tiff], ids=["gif", "tiff"])
def test_only_the_selected_page_is_decoded(shown: Shown, make: Callable[[int], bytes]) -> None:
    assert shown(make(3000)).size == (1, 1)
