"""JPEGs decoded by Pillow's libjpeg-turbo, in a quarter less time than by the mozjpeg that libvips comes with."""

from __future__ import annotations

import io
from collections.abc import Callable

import pyvips
from PIL.JpegImagePlugin import JpegImageFile

from worker.imaging.colour import ICC_PROFILE

# Of the result, which lies in memory as a whole. Beyond this libvips goes through it line by line.
_MOST_PIXELS = 4_000_000
_INTERPRETATIONS = {"L": "b-w", "RGB": "srgb"}


def decode_small(read: Callable[[], bytes], width: int, height: int, shrink: int) -> pyvips.Image | None:
    """Grey or RGB, scaled by 1/`shrink` with parts of pixels counted as whole ones. None for what is better left to
    libvips: what is large, has other colours, or cannot be decoded, of which libvips tells what it is.

    `read` answers with all of a JPEG whose size was admitted; it is asked where that may be decoded here.
    """
    size = (-(-width // shrink), -(-height // shrink))
    if size[0] * size[1] > _MOST_PIXELS:
        return None
    try:
        # Not Image.open, which looks for several pictures in one file and for bombs: this one is admitted already.
        picture = JpegImageFile(io.BytesIO(read()))
        picture.draft(picture.mode, (max(1, width // shrink), max(1, height // shrink)))
        if picture.mode not in _INTERPRETATIONS or picture.size != size:
            return None
        pixels = picture.tobytes()
    except Exception:  # whatever Pillow trips over: libvips has the last word
        return None
    image = pyvips.Image.new_from_memory(pixels, *size, len(picture.getbands()), "uchar")
    image = image.copy(interpretation=_INTERPRETATIONS[picture.mode])
    if profile := picture.info.get("icc_profile"):
        image.set_type(pyvips.GValue.blob_type, ICC_PROFILE, profile)
    return image
