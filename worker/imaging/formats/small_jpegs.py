"""Decodes JPEGs with Pillow's libjpeg-turbo, in a quarter less time than with the mozjpeg of libvips."""

from __future__ import annotations

import io
from collections.abc import Callable

import pyvips
from PIL.JpegImagePlugin import JpegImageFile

from worker.imaging.colour import ICC_PROFILE

# The maximum of the result, which is completely in memory. libvips decodes larger ones line by line.
_MAX_PIXELS = 4_000_000
_INTERPRETATIONS = {"L": "b-w", "RGB": "srgb"}


def decode_small(read: Callable[[], bytes], width: int, height: int, shrink: int) -> pyvips.Image | None:
    """Returns a grey or RGB image scaled by 1/`shrink`, its size rounded up.

    Returns None if libvips has to decode the file: a large result, other colours, or damage, which libvips can name.
    `read` returns the bytes of a JPEG whose size was checked; it is only called if the result is small.
    """
    size = (-(-width // shrink), -(-height // shrink))
    if size[0] * size[1] > _MAX_PIXELS:
        return None
    try:
        # Not Image.open, which searches for several pictures in the file, and limits a size that was already checked.
        picture = JpegImageFile(io.BytesIO(read()))
        picture.draft(picture.mode, (max(1, width // shrink), max(1, height // shrink)))
        if picture.mode not in _INTERPRETATIONS or picture.size != size:
            return None
        pixels = picture.tobytes()
    except Exception:  # libvips decides if Pillow fails
        return None
    image = pyvips.Image.new_from_memory(pixels, *size, len(picture.getbands()), "uchar")
    image = image.copy(interpretation=_INTERPRETATIONS[picture.mode])
    if profile := picture.info.get("icc_profile"):
        image.set_type(pyvips.GValue.blob_type, ICC_PROFILE, profile)
    return image
