"""A small copy of a picture for its preview. Creating it decodes the whole picture.

Pixels are fetched through a `Region`, in the calling thread: libvips's usual sinks start worker threads, which costs
0.25 ms a pipeline.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyvips

from worker.imaging.colour import convert, is_srgb, needs_conversion
from worker.imaging.vips import fetch_lines, premultiply, unpremultiply

# The long side of the small copy is this to twice this, unless the picture is smaller.
SMALL_PX = 192


@dataclass(frozen=True, slots=True)
class SmallCopy:
    """8-bit sRGB (3 bands) or grey (1 band) pixels, without padding."""

    width: int
    height: int
    bands: int
    pixels: bytes


def copy_pixels(
    pixels: np.ndarray[tuple[int, int, int], np.dtype[np.uint8]], profile: bytes | None
) -> SmallCopy | None:
    """Returns what `make_small_copy` would for grey or RGB pixels in memory, without libvips.

    Returns None if they have to be shrunk or converted.
    """
    height, width, bands = pixels.shape
    if max(width, height) >= 2 * SMALL_PX or not is_srgb(profile):
        return None
    return SmallCopy(width, height, bands, pixels.tobytes())


def make_small_copy(image: pyvips.Image, profile: bytes | None) -> SmallCopy:
    """Decodes the whole image, and returns it flattened on white, in sRGB or grey.

    It is shrunk by an integer factor, at half the cost of a fractional resize.
    """
    if needs_conversion(image, profile):
        # Decoded before it is converted, so that an error of the decoder is not mistaken for an error of a profile.
        small = _shrink(premultiply(image) if image.hasalpha() else image)
        small = fetch_lines(pyvips.Region.new(small), small, small.height)
        small = convert(unpremultiply(small) if image.hasalpha() else small, profile)
        image = _flatten(small)
    else:
        image = _shrink(_flatten(image))
    pixels = pyvips.Region.new(image).fetch(0, 0, image.width, image.height)
    return SmallCopy(image.width, image.height, image.bands, pixels)


def _shrink(image: pyvips.Image) -> pyvips.Image:
    width, height = image.width, image.height
    shrink = max(width, height) // SMALL_PX
    return image.shrink(min(shrink, width), min(shrink, height), ceil=True) if shrink > 1 else image


def _flatten(image: pyvips.Image) -> pyvips.Image:
    return image.flatten(background=255) if image.hasalpha() else image
