"""Converts the samples of a TIFF to 8 or 16 bits of grey, RGB or CMYK, with or without alpha (TIFF 6.0, and its
technical notes).

libvips leaves this to its caller: the ranges of floats and of wide integers, the colours of YCbCr and Lab, and which of
the extra samples is an alpha. It divides colours by an associated alpha itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import pyvips

from service.images.probe import Rejected

BITS_PER_SAMPLE, COMPRESSION, PHOTOMETRIC, SAMPLES_PER_PIXEL, PLANAR = 258, 259, 262, 277, 284
_TILE_WIDTH, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 322, 338, 339
_LUMA, _SUBSAMPLING, _BLACK_WHITE = 529, 530, 532


class Photometric(IntEnum):
    WHITE_IS_ZERO = 0
    BLACK_IS_ZERO = 1
    RGB = 2
    PALETTE = 3
    MASK = 4
    CMYK = 5
    YCBCR = 6
    CIELAB = 8
    ICCLAB = 9
    LOGLUV = 32845


_COLOURS = {
    Photometric.WHITE_IS_ZERO: 1,
    Photometric.BLACK_IS_ZERO: 1,
    Photometric.RGB: 3,
    Photometric.PALETTE: 1,
    Photometric.MASK: 1,
    Photometric.CMYK: 4,
    Photometric.YCBCR: 3,
    Photometric.CIELAB: 3,
    Photometric.ICCLAB: 3,
    Photometric.LOGLUV: 3,
}
# Photometric interpretations that libvips converts itself, if they have 16 bits.
_READY = frozenset({Photometric.WHITE_IS_ZERO, Photometric.BLACK_IS_ZERO, Photometric.RGB, Photometric.PALETTE})
_LAB = frozenset({Photometric.CIELAB, Photometric.ICCLAB})
_GREY = frozenset({Photometric.WHITE_IS_ZERO, Photometric.BLACK_IS_ZERO, Photometric.MASK})
_OTHER_PHOTOMETRICS = {10: "ITU Lab", 32844: "LogL"}
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_COMPLEX = frozenset({5, 6})
_ASSOCIATED, _UNASSOCIATED = 1, 2
_JPEG = frozenset({6, 7})  # libjpeg makes RGB of YCbCr
_DEPTHS = frozenset({1, 2, 4, 8, 16, 32})

# The value of white, by the format of libvips.
_FULL = {"uchar": 255, "ushort": 65535, "uint": 2**32 - 1, "char": 127, "short": 32767, "int": 2**31 - 1, "float": 1}
# If the largest value of grey floats is higher than this, the range is not 0 to 1, but to 255 or 65,535.
_MAX_UNIT = 16
_INFINITE = 1e38

# Returns at most this many values (second parameter) of a tag (first parameter); () if the page does not have it.
Tags = Callable[[int, int], tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Samples:
    """The description of a page's samples by its tags. `extra` are the kinds of the samples after the colour; None if
    the page has no such tag.
    """

    photometric: int
    count: int
    bits: tuple[int, ...]
    format: int
    compression: int
    planar: bool
    tiled: bool
    extra: tuple[int, ...] | None
    subsampled: bool
    luma: tuple[float, ...]
    black_white: tuple[float, ...]

    @property
    def depth(self) -> int:
        return self.bits[0]

    @property
    def colours(self) -> int:
        """The number of samples that make the colour."""
        return _COLOURS.get(Photometric(self.photometric), self.count)

    @property
    def alpha(self) -> int | None:
        """The index of the alpha among the extra samples.

        A single sample that the page does not describe is an alpha, as in libtiff. An "unspecified" one is not, because
        editors store masks in this way.
        """
        if self.extra is None:
            return 0 if self.count == self.colours + 1 else None
        return next((at for at, kind in enumerate(self.extra) if kind in {_ASSOCIATED, _UNASSOCIATED}), None)

    @property
    def decoded_photometric(self) -> int:
        """The interpretation to put into the file, if decoders misread or refuse the true one."""
        match self.photometric:
            case _ if self.is_planar_grey:
                return Photometric.RGB
            case Photometric.MASK:
                return Photometric.BLACK_IS_ZERO
            case Photometric.WHITE_IS_ZERO if self.format == _SIGNED:
                return Photometric.BLACK_IS_ZERO
            case Photometric.YCBCR if self.is_plain_ycbcr and (self.planar or self.count > 3):
                return Photometric.RGB
            case Photometric.CIELAB | Photometric.ICCLAB if self.depth == 8 or self.planar:
                return Photometric.RGB
        return self.photometric

    @property
    def is_planar_grey(self) -> bool:
        """Whether libvips would read the lines of a strip from wrong offsets, unless it is declared as a colour
        picture.
        """
        return self.planar and self.photometric in _GREY

    @property
    def is_inverted(self) -> bool:
        """Whether white is 0 and decoders do not invert it."""
        is_unchanged = self.format == _FLOAT or self.decoded_photometric != Photometric.WHITE_IS_ZERO
        return self.photometric == Photometric.WHITE_IS_ZERO and is_unchanged

    @property
    def is_plain_ycbcr(self) -> bool:
        """Whether decoders return YCbCr. libjpeg converts it to RGB, and libtiff if it is subsampled."""
        return self.photometric == Photometric.YCBCR and self.compression not in _JPEG and not self.subsampled


def read_samples(tags: Tags) -> Samples:
    """Returns the samples of a page. Raises Rejected with the name of a kind that no decoder here supports."""
    count = int(_first_value(tags, SAMPLES_PER_PIXEL, 1))
    subsampling = tags(_SUBSAMPLING, 2) or (2, 2)
    extra = tuple(map(int, tags(_EXTRA_SAMPLES, 32))) or None
    samples = Samples(
        photometric=int(_first_value(tags, PHOTOMETRIC, Photometric.BLACK_IS_ZERO)),
        count=count,
        bits=tuple(map(int, tags(BITS_PER_SAMPLE, 32))) or (1,),
        format=int(_first_value(tags, _SAMPLE_FORMAT, _UNSIGNED)),
        compression=int(_first_value(tags, COMPRESSION, 1)),
        planar=count > 1 and _first_value(tags, PLANAR, 1) == 2,
        tiled=bool(tags(_TILE_WIDTH, 1)),
        extra=extra,
        subsampled=any(factor != 1 for factor in subsampling),
        luma=tags(_LUMA, 3),
        black_white=tags(_BLACK_WHITE, 6),
    )
    kind = _unsupported(samples)
    if kind is not None:
        raise Rejected("unsupported-image", f"{kind} TIFF")
    return samples


def _first_value(tags: Tags, tag: int, default: int) -> float:
    values = tags(tag, 1)
    return values[0] if values else default


def _unsupported(samples: Samples) -> str | None:
    """Returns the kind of samples if libvips cannot decode them, or decodes them wrongly."""
    depth, photometric = samples.depth, samples.photometric
    if photometric not in list(Photometric):
        return _OTHER_PHOTOMETRICS.get(photometric, f"photometric {photometric}")
    is_float = samples.format == _FLOAT
    is_associated = _ASSOCIATED in (samples.extra or ())
    kinds = {
        "complex": samples.format in _COMPLEX,
        "mixed-depth": len(set(samples.bits)) > 1,
        f"{depth}-bit float": is_float and depth not in {16, 32},
        f"{depth}-bit": depth not in _DEPTHS,
        f"{depth}-bit multi-band": depth < 8 and samples.count > 1,
        "tiled planar": samples.tiled and samples.planar,
        "planar 16-bit float": samples.planar and is_float and depth == 16,
        "planar palette": samples.planar and photometric == Photometric.PALETTE,
        "32-bit associated-alpha": is_associated and depth == 32 and not is_float,
        "signed associated-alpha": is_associated and samples.format == _SIGNED,
        "planar associated-alpha": is_associated and samples.is_planar_grey and depth != 8,
        "multi-ink": photometric == Photometric.CMYK
        and samples.count - len(samples.extra or ()) > samples.colours + (samples.extra is None),
        "subsampled YCbCr": photometric == Photometric.YCBCR
        and samples.subsampled
        and samples.compression not in _JPEG
        and (samples.planar or depth != 8 or samples.count != 3),
    }
    return next((kind for kind, holds in kinds.items() if holds), None)


def needs_full_scale(samples: Samples) -> bool:
    """Returns whether the value of white depends on the pixels: for grey floats, and integers whose range few programs
    use.
    """
    if samples.format == _FLOAT:
        return samples.colours == 1
    return samples.depth == 32 or (samples.format == _SIGNED and samples.depth == 16)


def full_scale(image: pyvips.Image) -> float:
    """Returns the value of white, by the largest finite value: 1, 255, 65,535, or the largest of the type."""
    largest = (image.abs() < _INFINITE).ifthenelse(image, 0).max()
    if image.format == "float" and largest <= _MAX_UNIT:
        return 1
    if largest <= 255.5:
        return 255
    if image.format == "float" or (largest <= 65535 and image.format != "short"):
        return 65535
    return _FULL[image.format]


def as_integers(image: pyvips.Image, samples: Samples, *, white: float | None = None) -> pyvips.Image:
    """Returns the image in 8 or 16 bits, not yet computed: the bands of the colour and, if the samples have one, alpha.

    `white` is the result of `full_scale`. RGB floats without a profile are linear light (scRGB), as in libvips,
    Photoshop and Windows; with a profile they are encoded as it says.
    """
    colours = samples.colours
    if samples.is_planar_grey:
        image = image.copy(interpretation="grey16" if image.format == "ushort" else "b-w")
    if samples.photometric == Photometric.PALETTE:  # libvips has replaced indexes by colours
        colours = image.bands - (image.bands in {2, 4})
    at = None if samples.alpha is None else colours + samples.alpha
    alpha = image.extract_band(at) if at is not None and at < image.bands else None
    if image.bands > colours:
        if _is_ready(image, samples) and alpha is not None and image.bands == colours + 1:
            return image
        image = image.extract_band(0, n=colours)
    if not _is_ready(image, samples):
        image = _convert_colour(image, samples, white or _FULL[image.format])
    if alpha is None:
        return image
    return image.bandjoin(_scale(alpha, _FULL[image.format] / _FULL[alpha.format], image.format))


def _is_ready(image: pyvips.Image, samples: Samples) -> bool:
    """Returns whether the colours need no conversion."""
    if samples.is_inverted:
        return False
    if image.format == "uchar":
        return not samples.is_plain_ycbcr and samples.photometric not in _LAB
    return image.format == "ushort" and samples.photometric in _READY


def _convert_colour(image: pyvips.Image, samples: Samples, white: float) -> pyvips.Image:
    if image.format == "float":
        image = _without_nan(image)
    if samples.photometric in _LAB:
        return _from_lab(image, is_signed=samples.photometric == Photometric.CIELAB)
    if samples.is_plain_ycbcr:
        return _from_ycbcr(image, samples)
    if samples.photometric == Photometric.CMYK:
        return _scale(image, 255 / white, "uchar").copy(interpretation="cmyk")
    if samples.photometric == Photometric.LOGLUV:
        return image.colourspace("rgb16")
    if image.format == "float" and image.bands == 3 and not image.get_typeof("icc-profile-data"):
        return image.copy(interpretation="scrgb").colourspace("rgb16")
    if samples.is_inverted:
        image = white - image
    kind = "grey16" if image.bands == 1 else "rgb16"
    return _scale(image, 65535 / white, "ushort").copy(interpretation=kind)


def _scale(image: pyvips.Image, factor: float, band_format: str) -> pyvips.Image:
    """Scales values, and clips those out of range."""
    if image.format == band_format and factor == 1:
        return image
    if image.format == "float":
        image = _without_nan(image)
    return image.linear(factor, 0).rint().cast(band_format)


def _without_nan(image: pyvips.Image) -> pyvips.Image:
    """Replaces NaN by 0."""
    return (image == image).ifthenelse(image, 0).copy(interpretation=image.interpretation)  # noqa: PLR0124


def _from_ycbcr(image: pyvips.Image, samples: Samples) -> pyvips.Image:
    """Converts by the tags YCbCrCoefficients and ReferenceBlackWhite (TIFF 6.0, section 21)."""
    full = _FULL[image.format]
    red, green, blue = _usable(samples.luma, 3) or (0.299, 0.587, 0.114)
    middle = (full + 1) // 2
    limits = _usable(samples.black_white, 6) or (0, full, middle, full, middle, full)
    if max(limits) <= 255 < full:  # written by programs that use the default of 8 bits
        limits = tuple(257 * limit for limit in limits)
    black, white = limits[0::2], limits[1::2]
    ranges = (full, full - middle, full - middle)
    if green == 0 or any(a == b for a, b in zip(black, white, strict=True)):
        return image
    scale = [span / (w - b) for span, b, w in zip(ranges, black, white, strict=True)]
    decoded = image.linear(scale, [-b * s for b, s in zip(black, scale, strict=True)])
    from_red, from_blue = 2 - 2 * red, 2 - 2 * blue
    matrix = [
        [1, 0, from_red],
        [1, -from_blue * blue / green, -from_red * red / green],
        [1, from_blue, 0],
    ]
    rgb = decoded.recomb(matrix).rint().cast(image.format)
    return rgb.copy(interpretation="rgb16" if image.format == "ushort" else "srgb")


def _usable(values: tuple[float, ...], count: int) -> tuple[float, ...] | None:
    return values if len(values) == count and any(values) else None


def _from_lab(image: pyvips.Image, *, is_signed: bool) -> pyvips.Image:
    """Converts Lab to sRGB by lcms, which takes Lab as relative to D50, as Photoshop does.

    CIELAB stores a and b as signed integers, ICCLAB with an offset. libvips unpacks 16 bits of CIELAB, and floats.
    """
    if image.format == "short":
        lab = image.linear([100 / 32767, 1 / 256, 1 / 256], [0, 0, 0])
    elif image.format == "float":
        lab = image
    else:
        lightness = image.extract_band(0).linear(100 / _FULL[image.format], 0)
        chroma = image.extract_band(1, n=2).linear(1 if image.format == "uchar" else 1 / 256, 0)
        chroma = (chroma >= 128).ifthenelse(chroma - 256, chroma) if is_signed else chroma - 128
        lab = lightness.bandjoin(chroma)
    lab = lab.cast("float").copy(interpretation="lab")
    lab.remove("icc-profile-data")  # a profile of Lab adds nothing to Lab
    return lab.icc_export(output_profile="srgb", intent="relative", depth=8)
