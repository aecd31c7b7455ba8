"""From a lazy image to a small copy of its pixels, which decodes all of it.

Pixels are fetched through a `Region`, in the calling thread: libvips's usual sinks start worker threads, which costs
0.25 ms a pipeline, a sixth of the whole probe of a 640 x 480 JPEG.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyvips

# The long side of the small copy is this to twice this, where the picture has it.
SMALL_PX = 192


@dataclass(frozen=True, slots=True)
class Small:
    """8-bit sRGB (3 bands) or grey (1 band) pixels, without padding."""

    width: int
    height: int
    bands: int
    pixels: bytes


def reduce(image: pyvips.Image, profile: bytes | None) -> Small:
    """Decode everything, averaged down by whole numbers (half the cost of a fractional resize), flattened on white,
    in sRGB or grey.
    """
    if image.hasalpha():
        image = image.flatten(background=65535 if image.format == "ushort" else 255)
    width, height = image.width, image.height
    shrink = max(width, height) // SMALL_PX
    if shrink > 1:
        image = image.shrink(min(shrink, width), min(shrink, height), ceil=True)
    if is_foreign(image, profile):
        # Decoded before it is converted, so that an error of the decoder is told from an odd colour space.
        image = to_srgb(fetch(pyvips.Region.new(image), image, image.height), profile)
    pixels = pyvips.Region.new(image).fetch(0, 0, image.width, image.height)
    return Small(image.width, image.height, image.bands, pixels)


def fetch(region: pyvips.Region, image: pyvips.Image, height: int) -> pyvips.Image:
    """The first lines as an image in memory."""
    pixels = region.fetch(0, 0, image.width, height)
    fetched = pyvips.Image.new_from_memory(pixels, image.width, height, image.bands, image.format)
    return fetched.copy(interpretation=image.interpretation)


def is_foreign(image: pyvips.Image, profile: bytes | None) -> bool:
    """Whether an image without alpha is something else than 8 bits of sRGB or grey."""
    plain = image.format == "uchar" and image.interpretation in {"srgb", "b-w"} and image.bands in {1, 3}
    return not plain or _counts(image, profile)


def to_srgb(image: pyvips.Image, profile: bytes | None) -> pyvips.Image:
    """8-bit sRGB or grey of an image in memory, without alpha."""
    if _counts(image, profile):
        tagged = image.copy()
        tagged.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)
        try:
            return tagged.icc_transform("srgb", embedded=True).copy_memory()
        except pyvips.Error:
            pass  # a broken profile, or one of another colour space: as browsers do, go without
    grey = image.bands < 3
    try:
        image = image.colourspace("b-w" if grey else "srgb")
    except pyvips.Error:
        grey = True  # bands without a meaning: show the first
    return image.extract_band(0, n=1 if grey else 3).cast("uchar")


def _counts(image: pyvips.Image, profile: bytes | None) -> bool:
    return profile is not None and image.bands >= 3 and not _is_srgb(profile)


def _is_srgb(profile: bytes) -> bool:
    return b"sRGB" in profile or "sRGB".encode("utf-16-be") in profile
