"""Pixels in memory, and what colour they are: 8 bits of sRGB or grey, with or without alpha."""

from __future__ import annotations

import pyvips

from service.renditions.transformation import Rgba, Transformation
from worker.imaging.pixels import fetch

# Up to this many bytes of all that is decoded, pixels are fetched in this thread, in one piece; more are streamed.
_ONE_PIECE_BYTES = 16 << 20

_WHITE: Rgba = (255, 255, 255, 255)


def decoded(image: pyvips.Image, source: pyvips.Image) -> pyvips.Image:
    """`image` in memory. It is made of `source`, whose size decides how."""
    if source.width * source.height * source.bands > _ONE_PIECE_BYTES:
        return bare(image.copy_memory())
    return fetch(pyvips.Region.new(image), image, image.height)


def bare(image: pyvips.Image) -> pyvips.Image:
    """Without what the file said about it."""
    image = image.copy()
    for name in image.get_fields():
        if image.get_typeof(name) == pyvips.GValue.blob_type:
            image.remove(name)
    return image


def split(image: pyvips.Image) -> tuple[pyvips.Image, pyvips.Image]:
    """The colours and the alpha of an image that has one."""
    return image.extract_band(0, n=image.bands - 1), image.extract_band(image.bands - 1)


def resized(image: pyvips.Image, width: int, height: int) -> pyvips.Image:
    """Each side by itself: made smaller with Lanczos, or larger with a cubic.

    The latter by `affine`, for libvips's own `resize` moves what it enlarges by half a pixel to the right and down.
    """
    narrow, low = min(width, image.width), min(height, image.height)
    if (narrow, low) != (image.width, image.height):
        image = image.resize(narrow / image.width, vscale=low / image.height, kernel="lanczos3")
    if (narrow, low) == (width, height):
        return image
    x, y = width / image.width, height / image.height
    return image.affine(
        [x, 0, 0, y],
        interpolate=pyvips.Interpolate.new("bicubic"),
        odx=(x - 1) / 2,
        ody=(y - 1) / 2,
        oarea=[0, 0, width, height],
        extend="copy",
        premultiplied=True,
    )


def in_colour(image: pyvips.Image) -> pyvips.Image:
    return image.colourspace("srgb") if image.bands < 3 else image


def with_alpha(image: pyvips.Image) -> pyvips.Image:
    return image if image.hasalpha() else image.addalpha()


def ground(asked: Transformation) -> Rgba:
    """The colour behind the picture and around it, in a format without alpha an opaque one."""
    if asked.format != "jpeg":
        return asked.background or (0, 0, 0, 0)
    return _over_white(asked.background) if asked.background else _WHITE


def _over_white(colour: Rgba) -> Rgba:
    *rgb, alpha = colour
    red, green, blue = (round(255 + (band - 255) * alpha / 255) for band in rgb)
    return red, green, blue, 255


def laid_on(image: pyvips.Image, colour: Rgba) -> pyvips.Image:
    """What shows where the picture is transparent. It has no alpha afterwards if the colour is opaque."""
    if not image.hasalpha() or colour[3] == 0:
        return image
    image = in_colour(image)
    if colour[3] == 255:
        return image.flatten(background=list(colour[:3]))
    return composed(solid(colour, image), image)


def composed(base: pyvips.Image, over: pyvips.Image, left: int = 0, top: int = 0) -> pyvips.Image:
    return base.composite2(over, "over", x=left, y=top, compositing_space="srgb").rint().cast("uchar")


def solid(colour: Rgba, like: pyvips.Image) -> pyvips.Image:
    """Of one colour, with alpha, in the size of `like`."""
    pixel = pyvips.Image.new_from_memory(bytes(colour), 1, 1, 4, "uchar").copy(interpretation="srgb")
    return pixel.embed(0, 0, like.width, like.height, extend="copy")
