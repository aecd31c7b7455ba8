"""Operations on the pixels of a rendition: 8 bits of sRGB or grey, with or without alpha."""

from __future__ import annotations

import pyvips

from service.renditions.transformation import Rgba, Transformation
from worker.imaging.vips import fetch_lines

# Up to this many decoded bytes, pixels are fetched in this thread, in one piece. Larger images are streamed.
_ONE_PIECE_BYTES = 16 << 20

_WHITE: Rgba = (255, 255, 255, 255)


def decode(image: pyvips.Image, source: pyvips.Image) -> pyvips.Image:
    """Returns `image` in memory. It is computed from `source`, whose size decides how."""
    if source.width * source.height * source.bands > _ONE_PIECE_BYTES:
        return strip_metadata(image.copy_memory())
    return fetch_lines(pyvips.Region.new(image), image, image.height)


def strip_metadata(image: pyvips.Image) -> pyvips.Image:
    """Returns the image without profile, EXIF and XMP."""
    image = image.copy()
    for name in image.get_fields():
        if image.get_typeof(name) == pyvips.GValue.blob_type:
            image.remove(name)
    return image


def split_alpha(image: pyvips.Image) -> tuple[pyvips.Image, pyvips.Image]:
    """Returns the colour bands and the alpha of an image that has alpha."""
    return image.extract_band(0, n=image.bands - 1), image.extract_band(image.bands - 1)


def resize(image: pyvips.Image, width: int, height: int) -> pyvips.Image:
    """Resizes each side separately: Lanczos to shrink it, bicubic to enlarge it.

    Enlarges by `affine`, because libvips's `resize` moves an enlarged image by half a pixel to the right and down.
    """
    old_width, old_height = image.width, image.height
    narrow, low = min(width, old_width), min(height, old_height)
    if (narrow, low) != (old_width, old_height):
        image = image.resize(narrow / old_width, vscale=low / old_height, kernel="lanczos3")
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


def to_colour(image: pyvips.Image) -> pyvips.Image:
    return image.colourspace("srgb") if image.bands < 3 else image


def add_alpha(image: pyvips.Image) -> pyvips.Image:
    return image if image.hasalpha() else image.addalpha()


def background_colour(transformation: Transformation) -> Rgba:
    """Returns the colour behind the picture and around it; an opaque one for a format without alpha."""
    if transformation.format != "jpeg":
        return transformation.background or (0, 0, 0, 0)
    return _flatten_on_white(transformation.background) if transformation.background else _WHITE


def _flatten_on_white(colour: Rgba) -> Rgba:
    *rgb, alpha = colour
    red, green, blue = (round(255 + (band - 255) * alpha / 255) for band in rgb)
    return red, green, blue, 255


def flatten_on(image: pyvips.Image, colour: Rgba) -> pyvips.Image:
    """Puts a colour behind the picture. The result has no alpha if the colour is opaque."""
    if not image.hasalpha() or colour[3] == 0:
        return image
    image = to_colour(image)
    if colour[3] == 255:
        return image.flatten(background=list(colour[:3]))
    return composite(solid_image(colour, image), image)


def composite(base: pyvips.Image, over: pyvips.Image, left: int = 0, top: int = 0) -> pyvips.Image:
    return base.composite2(over, "over", x=left, y=top, compositing_space="srgb").rint().cast("uchar")


def solid_image(colour: Rgba, like: pyvips.Image) -> pyvips.Image:
    """Returns an image of one colour, with alpha, in the size of `like`."""
    pixel = pyvips.Image.new_from_memory(bytes(colour), 1, 1, 4, "uchar").copy(interpretation="srgb")
    return pixel.embed(0, 0, like.width, like.height, extend="copy")
