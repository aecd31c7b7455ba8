"""Colours, compared with Chromium (by `tests.support.chromium`, which has its version) and with lcms (by Pillow)."""

from __future__ import annotations

import contextlib
import io
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
from PIL import Image, ImageCms

from service.images.probe import Rejected
from service.renditions.transformation import Transformation
from tests.support import colours, icc_profiles, pictures
from tests.support.chromium import CHROMIUM_COLOURS
from tests.support.colours import SIZE, chart, patches, samples
from tests.support.icc_profiles import ADOBE_RGB, BT2020, P3, PROPHOTO, SRGB, SRGB_CURVE_TAG, gamma, parametric, table
from worker import imaging
from worker.imaging.colour import convert, profile_of_code_points
from worker.imaging.colour.interpretation import interpret
from worker.imaging.formats import detect_format
from worker.imaging.formats.source import open_source

SAMPLES = samples()
# Of 255. A table of Chromium's goes through steps that lcms does not take; those of inks have nine a side.
TOLERANCES = {"iCCP table": 5, "iCCP table of version 4": 5, "JPEG table on grey": 5, "JPEG CMYK, CMYK": 15}
TOLERANCE = 3

Patches = list[tuple[int, ...]]
Show = Callable[[bytes], Patches]


@pytest.fixture
def stored(tmp_path: Path) -> Callable[[bytes], str]:
    def store(data: bytes) -> str:
        path = tmp_path / "picture"
        path.write_bytes(data)
        return str(path)

    return store


@pytest.fixture
def rendition(stored: Callable[[bytes], str]) -> Callable[..., Image.Image]:
    def render(data: bytes, **params: Any) -> Image.Image:
        asked = Transformation(format="png", quality=90, **params)
        return Image.open(io.BytesIO(imaging.render(stored(data), asked, watermark=None, max_pixels=1_000_000)))

    return render


@pytest.fixture
def preview(stored: Callable[[bytes], str]) -> Callable[[bytes], Image.Image]:
    """Returns the small copy, from which the preview is made."""

    def reduce(data: bytes) -> Image.Image:
        with open_source(stored(data), 1_000_000) as source:
            small = detect_format(source.fd).probe(source).small_copy
        image = Image.frombytes("L" if small.bands == 1 else "RGB", (small.width, small.height), small.pixels)
        return image.resize(SIZE, Image.Resampling.NEAREST)

    return reduce


def difference(these: Patches, those: Patches) -> int:
    return max(abs(a - b) for one, other in zip(these, those, strict=True) for a, b in zip(one, other, strict=True))


def pixels(image: Image.Image) -> Patches:
    bands = len(image.getbands())
    return [tuple(pixel) for pixel in np.asarray(image).reshape(-1, bands).tolist()]


def shown_by_chromium(name: str) -> Patches:
    return [tuple(bytes.fromhex(patch)) for patch in CHROMIUM_COLOURS[name].split()]


# What a browser shows


@pytest.mark.parametrize("name", SAMPLES)
def test_colours_match_chromium(
    rendition: Callable[..., Image.Image], preview: Callable[[bytes], Image.Image], name: str
) -> None:
    expected = shown_by_chromium(name)
    tolerance = TOLERANCES.get(name, TOLERANCE)
    assert difference(patches(rendition(SAMPLES[name])), expected) <= tolerance
    assert difference(patches(preview(SAMPLES[name])), expected) <= tolerance


def test_colours_survive_every_crop(rendition: Callable[..., Image.Image]) -> None:
    for name in ("iCCP P3", "cICP PQ", "AVIF P3", "JPEG CMYK", "JPEG CMYK, CMYK", "iCCP grey, alpha"):
        data, expected = SAMPLES[name], shown_by_chromium(name)
        for params in ({"width": 64}, {"crop": SIZE}, {"crop": SIZE, "gravity": "smart"}):
            image = rendition(data, **params).resize(SIZE, Image.Resampling.NEAREST)
            assert difference(patches(image), expected) <= TOLERANCES.get(name, 6)


def test_grey_stays_grey(rendition: Callable[..., Image.Image], preview: Callable[[bytes], Image.Image]) -> None:
    for name in (
        "JPEG grey",
        "iCCP grey",
        "iCCP RGB on grey",
        "gAMA 0.55, grey",
        "cICP PQ, grey",
        "AVIF grey, limited",
    ):
        assert rendition(SAMPLES[name]).mode == "L"
        assert preview(SAMPLES[name]).mode == "L"


def test_alpha_survives_colour_conversion(rendition: Callable[..., Image.Image]) -> None:
    picture = Image.merge("RGBA", (*chart().split(), Image.linear_gradient("L").resize(SIZE)))
    profile = icc_profiles.rgb_profile(P3, SRGB_CURVE_TAG)
    for form, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        image = rendition(pictures.encode(form, picture, icc_profile=profile, **options))
        assert image.getchannel("A").tobytes() == picture.getchannel("A").tobytes()
        expected = shown_by_chromium("iCCP P3")
        assert difference(patches(image), expected) <= TOLERANCE


# AVIF and HEIC


@pytest.mark.parametrize(("transfer", "name"), [(16, "cICP PQ"), (18, "cICP HLG")])
@pytest.mark.parametrize("bits", [8, 10, 12])
def test_hdr_avif_has_the_colours_of_its_png(
    rendition: Callable[..., Image.Image], transfer: int, name: str, bits: int
) -> None:
    """The PNG samples say that nothing is brighter than SDR white, so that Chromium does not darken them."""
    image = rendition(colours.avif(9, transfer, bits=bits))
    within = 24 if bits == 8 else 4  # a level of lossy YCbCr, in the steepest part of the curve
    assert difference(patches(image), shown_by_chromium(name)) <= within


def test_sdr_white_is_white(rendition: Callable[..., Image.Image]) -> None:
    """203 cd/m2 (BT.2408) are 58.06 % of PQ and 75 % of HLG. Brighter light is white too, darker light is not."""
    for transfer, white in ((16, 0.5806), (18, 0.7500)):
        levels = [round(255 * share) for share in (white - 0.02, white + 0.002, 0.9, 1)]
        image = Image.frombytes("RGB", (4, 1), bytes(level for level in levels for _ in range(3)))
        (below, *_), *others = pixels(rendition(colours.png(colours.cicp(9, transfer), image=image)))
        assert 225 <= below <= 247
        assert min(min(colour) for colour in others) >= 254


def test_heic_has_the_colours_of_nclx(rendition: Callable[..., Image.Image]) -> None:
    plain = rendition(pictures.HEIC)
    for primaries in (1, 2):
        data = colours.with_colr(pictures.HEIC, colours.nclx(primaries, 13, 6))
        assert pixels(rendition(data)) == pixels(plain)
    wide = rendition(colours.with_colr(pictures.HEIC, colours.nclx(12, 13, 6)))
    assert difference(pixels(wide), lcms(plain, icc_profiles.rgb_profile(P3, SRGB_CURVE_TAG))) <= 4


def test_avif_with_damaged_profile_uses_nclx(rendition: Callable[..., Image.Image]) -> None:
    profile = icc_profiles.rgb_profile(ADOBE_RGB, gamma(2.2))
    for broken in (profile[:150], b"nothing", icc_profiles.cmyk_profile()):
        image = rendition(colours.avif(12, 13, profile=broken))
        assert difference(patches(image), shown_by_chromium("AVIF P3")) <= TOLERANCE


def test_grey_avif_uses_a_grey_profile(rendition: Callable[..., Image.Image]) -> None:
    """Chromium does not show such a file at all."""
    profile = icc_profiles.grey_profile(table(icc_profiles.dot_gain, 256))
    image = rendition(colours.avif(mode="L", profile=profile))
    assert difference(patches(image), shown_by_chromium("iCCP grey")) <= TOLERANCE


# What lcms says


def lcms(image: Image.Image, profile: bytes) -> Patches:
    """Converts all pixels: relative colorimetric, without black point compensation."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    target = ImageCms.createProfile("sRGB")
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    transform = ImageCms.buildTransform(source, target, image.mode, "RGB", intent)
    shown = ImageCms.applyTransform(image, transform)
    assert shown is not None
    return pixels(shown)


def spectrum(mode: str) -> Image.Image:
    """Returns colours of the whole space."""
    noise = random.Random(18)
    return Image.frombytes(mode, (64, 16), noise.randbytes(64 * 16 * len(Image.new(mode, (1, 1)).getbands())))


CURVES = {
    "gamma 1.8": gamma(1.8),
    "linear": parametric(1),
    "sRGB": SRGB_CURVE_TAG,
    "table": table(lambda v: v**2.5, 200),
}
SPACES = {"sRGB": SRGB, "P3": P3, "Adobe RGB": ADOBE_RGB, "BT.2020": BT2020, "ProPhoto": PROPHOTO}


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("space", SPACES)
def test_matrix_profiles_match_lcms(rendition: Callable[..., Image.Image], space: str, curve: str) -> None:
    profile = icc_profiles.rgb_profile(SPACES[space], CURVES[curve])
    picture = spectrum("RGB")
    expected = lcms(picture, profile)
    for form in ("PNG", "TIFF"):
        shown = rendition(pictures.encode(form, picture, icc_profile=profile))
        assert difference(pixels(shown), expected) <= 3


@pytest.mark.parametrize("curve", CURVES)
def test_grey_profiles_match_lcms(rendition: Callable[..., Image.Image], curve: str) -> None:
    profile = icc_profiles.grey_profile(CURVES[curve])
    picture = spectrum("L")
    expected = [colour[:1] for colour in lcms(picture, profile)]
    for form in ("PNG", "TIFF"):
        shown = rendition(pictures.encode(form, picture, icc_profile=profile))
        assert difference(pixels(shown), expected) <= 1


def test_table_profiles_match_lcms(rendition: Callable[..., Image.Image]) -> None:
    for mode, form, profile in (
        ("RGB", "PNG", icc_profiles.lut_profile()),
        ("RGB", "TIFF", icc_profiles.lifted_profile(version=4)),
        ("CMYK", "TIFF", icc_profiles.cmyk_profile()),
    ):
        picture = spectrum(mode)
        shown = rendition(pictures.encode(form, picture, icc_profile=profile))
        assert difference(pixels(shown), lcms(picture, profile)) <= 2


def test_lab_matches_lcms(rendition: Callable[..., Image.Image]) -> None:
    """Photoshop's TIFF has Lab relative to D50."""
    lab = [(light, a, b) for light in (40, 60, 80) for a in (-16, 0, 16) for b in (-16, 0, 16)]
    stored = bytes(value & 255 for light, a, b in lab for value in (round(light * 2.55), a, b))
    picture = Image.frombytes("LAB", (len(lab), 1), stored)
    source, target = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    expected = ImageCms.applyTransform(picture, ImageCms.buildTransform(source, target, "LAB", "RGB", intent))
    assert expected is not None
    assert difference(pixels(rendition(pictures.encode("TIFF", picture))), pixels(expected)) <= 3


# What counts as sRGB


@pytest.mark.parametrize(
    "profile",
    [
        icc_profiles.rgb_profile(SRGB, SRGB_CURVE_TAG, name="not by its name"),
        icc_profiles.rgb_profile(SRGB, SRGB_CURVE_TAG, version=4),
        icc_profiles.rgb_profile(SRGB, table(icc_profiles.srgb_light, 1024)),
        icc_profiles.rgb_profile(SRGB, table(icc_profiles.srgb_light, 42)),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        icc_profiles.grey_profile(SRGB_CURVE_TAG),
    ],
)
def test_srgb_profile_needs_no_conversion(profile: bytes) -> None:
    meaning = interpret(profile)
    assert meaning is not None
    assert meaning.profile is None
    assert meaning.hdr is None
    grey = meaning.space == b"GRAY"
    image = pyvips.Image.black(8, 8, bands=1 if grey else 3).copy(interpretation="b-w" if grey else "srgb")
    assert convert(image, profile) is image


@pytest.mark.parametrize(
    "profile",
    [
        icc_profiles.rgb_profile(SRGB, gamma(2.2), name="sRGB IEC61966-2.1"),
        icc_profiles.rgb_profile(P3, SRGB_CURVE_TAG, name="sRGB IEC61966-2.1"),
        icc_profiles.rgb_profile(SRGB, gamma(1), name="linear sRGB"),
        icc_profiles.with_cicp(12, 13),
        icc_profiles.with_cicp(9, 16),
    ],
)
def test_profile_named_srgb_is_converted(profile: bytes) -> None:
    meaning = interpret(profile)
    assert meaning is not None
    assert meaning.profile is not None or meaning.hdr is not None


def test_each_code_point_has_a_profile() -> None:
    for primaries in (1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 22):
        for transfer in (1, 4, 5, 6, 7, 8, 11, 13, 14, 15, 16, 17, 18):
            profile = profile_of_code_points(primaries, transfer)
            assert profile is not None
            assert interpret(profile) is not None
    for primaries, transfer in ((0, 13), (2, 13), (3, 13), (99, 13), (1, 0), (1, 2), (1, 9), (1, 255)):
        assert profile_of_code_points(primaries, transfer) is None


# Hostile and damaged


@pytest.mark.slow
def test_damaged_profile_does_no_harm(rendition: Callable[..., Image.Image]) -> None:
    noise = random.Random(19)
    profiles = [
        icc_profiles.rgb_profile(P3, table(icc_profiles.srgb_light, 64)),
        icc_profiles.grey_profile(parametric(2.4, 0.9, 0.1, 0.08, 0.04)),
        icc_profiles.with_cicp(9, 16),
        icc_profiles.lifted_profile(),
    ]
    for number in range(200):
        damaged = bytearray(profiles[number % len(profiles)])
        for _ in range(noise.randint(1, 6)):
            damaged[noise.randrange(min(len(damaged), 500))] = noise.choice((0, 1, 127, 255, noise.randrange(256)))
        data = bytes(damaged[: noise.choice((len(damaged), len(damaged), noise.randrange(len(damaged))))])
        interpret(data)
        for picture in (chart(), chart("L")):
            assert rendition(colours.png(colours.iccp(data), image=picture)).size == SIZE


def test_curve_of_infinite_values_does_no_harm(rendition: Callable[..., Image.Image]) -> None:
    steep = parametric(32767, 32767, 32767, 32767, -32768, 32767, 32767)
    for profile in (icc_profiles.rgb_profile(SRGB, steep, version=4), icc_profiles.grey_profile(steep)):
        for picture in (chart(), chart("L")):
            assert rendition(colours.png(colours.iccp(profile), image=picture)).size == SIZE


def test_damaged_colour_chunk_does_no_harm(rendition: Callable[..., Image.Image]) -> None:
    noise = random.Random(20)
    for _ in range(200):
        chunks = [
            (kind, noise.choice((noise.randbytes, bytes))(size if noise.random() < 0.8 else noise.randrange(40)))
            for kind, size in ((b"cICP", 4), (b"gAMA", 4), (b"cHRM", 32), (b"sRGB", 1), (b"iCCP", 30))
            if noise.random() < 0.6
        ]
        assert rendition(colours.png(*chunks)).size == SIZE


def test_profile_length_is_bounded(rendition: Callable[..., Image.Image]) -> None:
    bomb = zlib.compress(bytes(100_000_000), 9)
    image = rendition(colours.png((b"iCCP", b"icc\0\0" + bomb), colours.gama(1)))
    assert difference(patches(image), shown_by_chromium("gAMA 1")) <= TOLERANCE


def test_damaged_colour_boxes_do_no_harm(stored: Callable[[bytes], str]) -> None:
    noise = random.Random(21)
    seeds = [
        colours.avif(12, 13, mode="L"),
        colours.avif_with_av1_primaries(12),
        colours.with_colr(pictures.HEIC, b"nclx"),
    ]
    for number in range(150):
        data = bytearray(seeds[number % len(seeds)])
        start = data.index(b"meta")
        for _ in range(noise.randint(1, 4)):
            data[noise.randrange(start, min(start + 400, len(data)))] = noise.randrange(256)
        with contextlib.suppress(Rejected):
            imaging.probe(stored(bytes(data)), max_pixels=1_000_000)


def test_cmyk_with_alpha_is_flattened_on_white(
    rendition: Callable[..., Image.Image], preview: Callable[[bytes], Image.Image]
) -> None:
    """Half of cyan ink, half transparent."""
    inks = np.zeros((32, 48, 5), dtype=np.uint8)
    inks[:, :] = (128, 0, 0, 0, 128)
    image = pyvips.Image.new_from_array(inks, interpretation="cmyk")
    data = bytes(image.tiffsave_buffer(compression="none"))
    over_white = Image.new("RGBA", (48, 32), "white")
    over_white.alpha_composite(rendition(data).convert("RGBA"))
    (expected, *_), (shown, *_) = pixels(over_white.convert("RGB")), pixels(preview(data))
    assert difference([shown], [expected]) <= 2
    assert expected[0] < 225 < expected[2]
