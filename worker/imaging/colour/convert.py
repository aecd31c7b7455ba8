"""Converts pixels in memory to 8 bits of sRGB or grey."""

from __future__ import annotations

import pyvips

from worker.imaging.colour.hdr import to_sdr
from worker.imaging.colour.interpretation import ICC_PROFILE, Interpretation, interpret

# Colour spaces of profiles that are used, by libvips's interpretation and the number of colour bands. Browsers use RGB
# profiles for grey too.
_SPACES = {
    **dict.fromkeys((("b-w", 1), ("grey16", 1)), frozenset({b"GRAY", b"RGB "})),
    **dict.fromkeys((("srgb", 3), ("rgb", 3), ("rgb16", 3)), frozenset({b"RGB "})),
    ("cmyk", 4): frozenset({b"CMYK"}),
}


def convert(image: pyvips.Image, profile: bytes | None) -> pyvips.Image:
    """Returns an image in memory as 8-bit sRGB or grey, with its alpha.

    The bands of the result depend only on the kind of image and the profile.
    """
    if not needs_conversion(image, profile):
        return image
    if not image.hasalpha():
        return _to_srgb(image, profile)
    colour = image.extract_band(0, n=image.bands - 1)
    return _to_srgb(colour, profile).bandjoin(_eight_bits(image.extract_band(image.bands - 1)))


def needs_conversion(image: pyvips.Image, profile: bytes | None) -> bool:
    """Returns whether `convert` changes the image, because its colours are not stored as 8 bits of sRGB or grey."""
    colours = image.bands - bool(image.hasalpha())
    is_plain = image.format == "uchar" and image.interpretation in {"srgb", "b-w"} and colours in {1, 3}
    return not is_plain or _interpret_for(image, colours, profile) is not None


def _interpret_for(image: pyvips.Image, colours: int, profile: bytes | None) -> Interpretation | None:
    """Returns what the profile means for these pixels; None if they are sRGB, or if the profile has another colour
    space.
    """
    meaning = None if profile is None else interpret(profile)
    if meaning is None or meaning.is_srgb:
        return None
    spaces = _SPACES.get((image.interpretation, colours), frozenset())
    return meaning if meaning.space in spaces else None


def _to_srgb(image: pyvips.Image, profile: bytes | None) -> pyvips.Image:
    """Returns 8-bit sRGB or grey of an image without alpha."""
    meaning = _interpret_for(image, image.bands, profile)
    if meaning is not None:
        try:
            return _transform(image, meaning)
        except pyvips.Error:
            pass  # lcms refuses the profile, so it is ignored, as in browsers
    grey = image.bands < 3
    try:
        image = image.colourspace("b-w" if grey else "srgb")
    except pyvips.Error:
        grey = True  # bands without a meaning: use the first one
    return image.extract_band(0, n=1 if grey else 3).cast("uchar")


def _transform(image: pyvips.Image, meaning: Interpretation) -> pyvips.Image:
    """Converts as Chromium does: relative colorimetric, without black point compensation. Raises pyvips.Error."""
    grey = image.bands == 1
    if grey and meaning.space == b"RGB ":
        image = image.bandjoin([image, image]).copy(interpretation="rgb16" if image.format == "ushort" else "srgb")
    if meaning.hdr is not None:
        srgb = to_sdr(image, meaning.hdr, meaning.to_xyz)
    else:
        tagged = image.copy()
        tagged.set_type(pyvips.GValue.blob_type, ICC_PROFILE, meaning.profile)
        srgb = tagged.icc_transform("srgb", embedded=True, intent="relative", pcs="xyz", depth=8)
    srgb = srgb.copy_memory()
    return srgb.extract_band(1).copy(interpretation="b-w") if grey and meaning.is_neutral else srgb


def _eight_bits(alpha: pyvips.Image) -> pyvips.Image:
    return (alpha >> 8 if alpha.format == "ushort" else alpha).cast("uchar")


def convert_untagged_cmyk(image: pyvips.Image) -> pyvips.Image:
    """Returns RGB for CMYK without a CMYK profile, as browsers show it: each ink absorbs its share of the light.

    Returns any other image unchanged. 255 is a full ink.
    """
    if image.interpretation != "cmyk" or image.bands != 4:
        return image
    has_profile = image.get_typeof(ICC_PROFILE) != 0
    meaning = interpret(bytes(image.get(ICC_PROFILE))) if has_profile else None
    if meaning is not None and meaning.space == b"CMYK":
        return image
    light = 255 - image
    rgb = light.extract_band(0, n=3) * light.extract_band(3) / 255
    rgb = rgb.rint().cast("uchar").copy(interpretation="srgb")
    if has_profile:  # a profile of another space
        rgb.remove(ICC_PROFILE)
    return rgb
