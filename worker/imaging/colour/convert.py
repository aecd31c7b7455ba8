"""Pixels in memory become 8 bits of sRGB or grey."""

from __future__ import annotations

import pyvips

from worker.imaging.colour.hdr import to_sdr
from worker.imaging.colour.interpretation import ICC_PROFILE, Interpretation, interpret

# Profiles that count, by libvips's name for the pixels and the number of their colours. Browsers take RGB for grey too.
_SPACES = {
    **dict.fromkeys((("b-w", 1), ("grey16", 1)), frozenset({b"GRAY", b"RGB "})),
    **dict.fromkeys((("srgb", 3), ("rgb", 3), ("rgb16", 3)), frozenset({b"RGB "})),
    ("cmyk", 4): frozenset({b"CMYK"}),
}


def convert(image: pyvips.Image, profile: bytes | None) -> pyvips.Image:
    """8-bit sRGB or grey of an image in memory; alpha stays. All images of one kind and profile have the same bands."""
    if not is_foreign(image, profile):
        return image
    if not image.hasalpha():
        return _to_srgb(image, profile)
    colour = image.extract_band(0, n=image.bands - 1)
    return _to_srgb(colour, profile).bandjoin(_eight_bits(image.extract_band(image.bands - 1)))


def is_foreign(image: pyvips.Image, profile: bytes | None) -> bool:
    """Whether the colours are stored as something else than 8 bits of sRGB or grey."""
    colours = image.bands - bool(image.hasalpha())
    plain = image.format == "uchar" and image.interpretation in {"srgb", "b-w"} and colours in {1, 3}
    return not plain or _effective(image, colours, profile) is not None


def _effective(image: pyvips.Image, colours: int, profile: bytes | None) -> Interpretation | None:
    """What the profile means for these pixels; None if they are sRGB, or the profile is not of their kind."""
    if profile is None:
        return None
    meaning = interpret(profile)
    if meaning is None or (meaning.profile is None and meaning.hdr is None):
        return None
    spaces = _SPACES.get((image.interpretation, colours), frozenset())
    return meaning if meaning.space in spaces else None


def _to_srgb(image: pyvips.Image, profile: bytes | None) -> pyvips.Image:
    """8-bit sRGB or grey, without alpha."""
    meaning = _effective(image, image.bands, profile)
    if meaning is not None:
        try:
            return _transform(image, meaning)
        except pyvips.Error:
            pass  # lcms refuses it: go without, as browsers do
    grey = image.bands < 3
    try:
        image = image.colourspace("b-w" if grey else "srgb")
    except pyvips.Error:
        grey = True  # bands without a meaning: show the first
    return image.extract_band(0, n=1 if grey else 3).cast("uchar")


def _transform(image: pyvips.Image, meaning: Interpretation) -> pyvips.Image:
    """As Chromium does: relative to white, black left where it is. Raises pyvips.Error."""
    grey = image.bands == 1
    if grey and meaning.space == b"RGB ":
        image = image.bandjoin([image, image]).copy(interpretation="rgb16" if image.format == "ushort" else "srgb")
    if meaning.hdr is not None:
        shown = to_sdr(image, meaning.hdr, meaning.to_xyz)
    else:
        tagged = image.copy()
        tagged.set_type(pyvips.GValue.blob_type, ICC_PROFILE, meaning.profile)
        shown = tagged.icc_transform("srgb", embedded=True, intent="relative", pcs="xyz", depth=8)
    shown = shown.copy_memory()
    return shown.extract_band(1).copy(interpretation="b-w") if grey and meaning.neutral else shown


def _eight_bits(alpha: pyvips.Image) -> pyvips.Image:
    return (alpha >> 8 if alpha.format == "ushort" else alpha).cast("uchar")
