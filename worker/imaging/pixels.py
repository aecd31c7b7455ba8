"""From a lazy image to a small copy of its pixels, which decodes all of it.

Pixels are fetched through a `Region`, in the calling thread: libvips's usual sinks start worker threads, which costs
0.25 ms a pipeline, a sixth of the whole probe of a 640 x 480 JPEG.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyvips

from worker.imaging.colour import convert, is_foreign

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
    if is_foreign(image, profile):
        # Decoded before it is converted, so that an error of the decoder is not taken for one of a profile.
        small = _shrink(premultiply(image) if image.hasalpha() else image)
        small = fetch(pyvips.Region.new(small), small, small.height)
        small = convert(unpremultiply(small) if image.hasalpha() else small, profile)
        image = _flatten(small)
    else:
        image = _shrink(_flatten(image))
    pixels = pyvips.Region.new(image).fetch(0, 0, image.width, image.height)
    return Small(image.width, image.height, image.bands, pixels)


def _shrink(image: pyvips.Image) -> pyvips.Image:
    width, height = image.width, image.height
    shrink = max(width, height) // SMALL_PX
    return image.shrink(min(shrink, width), min(shrink, height), ceil=True) if shrink > 1 else image


def _flatten(image: pyvips.Image) -> pyvips.Image:
    return image.flatten(background=255) if image.hasalpha() else image


def premultiply(image: pyvips.Image) -> pyvips.Image:
    return image.premultiply(max_alpha=_full(image)).rint().cast(image.format)


def unpremultiply(image: pyvips.Image) -> pyvips.Image:
    return image.unpremultiply(max_alpha=_full(image)).rint().cast(image.format)


def _full(image: pyvips.Image) -> int:
    return 65535 if image.format == "ushort" else 255


def fetch(region: pyvips.Region, image: pyvips.Image, height: int) -> pyvips.Image:
    """The first lines as an image in memory."""
    pixels = region.fetch(0, 0, image.width, height)
    fetched = pyvips.Image.new_from_memory(pixels, image.width, height, image.bands, image.format)
    return fetched.copy(interpretation=image.interpretation)
