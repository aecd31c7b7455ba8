"""Effects on a frame after the resize: colours, blur, sharpness, shape."""

from __future__ import annotations

import pyvips

from service.renditions.transformation import Rgba, Transformation
from worker.imaging.rendering.pixels import (
    add_alpha,
    background_colour,
    resize,
    solid_image,
    split_alpha,
    to_colour,
)
from worker.imaging.vips import premultiply, unpremultiply

# The weights of red, green and blue in brightness (ITU-R BT.709).
_LUMA = (0.2126, 0.7152, 0.0722)
_MIDDLE_GREY = 127.5
# A stronger blur is applied to a smaller picture: its cost grows with its radius, and the difference is invisible.
_MAX_SIGMA = 8.0
# The weight below which libvips cuts the blur's mask. Its default, 0.2, makes the deviation a quarter too small.
_MIN_WEIGHT = 0.02


def apply_effects(image: pyvips.Image, transformation: Transformation) -> pyvips.Image:
    """Applies all steps between the resize and the watermark."""
    image = _change_colours(image, transformation)
    if transformation.blur > 0:
        image = _blur(image, transformation.blur)
    if transformation.sharpen > 0:
        image = _sharpen(image, transformation.sharpen)
    return _cut_ellipse(image, background_colour(transformation)) if transformation.ellipse else image


def _change_colours(image: pyvips.Image, transformation: Transformation) -> pyvips.Image:
    """Applies brightness, contrast and saturation as one matrix and offset, so that nothing is clipped in between."""
    saturation = 0.0 if transformation.grayscale else transformation.saturation
    if image.bands < 3:
        saturation = 1.0
    factor = transformation.brightness * transformation.contrast
    if saturation == factor == transformation.contrast == 1:
        return image
    alpha = None
    if image.hasalpha():
        image, alpha = split_alpha(image)
    interpretation = image.interpretation
    if transformation.grayscale and image.bands == 3:
        image, interpretation = image.recomb([list(_LUMA)]), "b-w"
    elif saturation != 1:
        image = image.recomb(
            [
                [(1 - saturation) * part + saturation * (row == column) for column, part in enumerate(_LUMA)]
                for row in range(3)
            ]
        )
    offset = _MIDDLE_GREY * (1 - transformation.contrast)
    image = image.linear(factor, offset).rint().cast("uchar").copy(interpretation=interpretation)
    return image if alpha is None else image.bandjoin(alpha)


def _blur(image: pyvips.Image, sigma: float) -> pyvips.Image:
    alpha = image.hasalpha()
    if alpha:
        image = premultiply(image)
    shrink = min(int(sigma / _MAX_SIGMA * 2), image.width, image.height)
    if sigma > _MAX_SIGMA and shrink > 1:
        # In floats: integers would be visible as steps after the enlargement.
        small = image.shrink(shrink, shrink, ceil=True).cast("float").gaussblur(sigma / shrink, min_ampl=_MIN_WEIGHT)
        large = resize(small, small.width * shrink, small.height * shrink)
        image = large.crop(0, 0, image.width, image.height).rint().cast("uchar")
    else:
        image = image.gaussblur(sigma, min_ampl=_MIN_WEIGHT)
    return unpremultiply(image) if alpha else image


def _sharpen(image: pyvips.Image, sigma: float) -> pyvips.Image:
    if not image.hasalpha():
        return image.sharpen(sigma=sigma)
    colour, alpha = split_alpha(image)
    return colour.sharpen(sigma=sigma).bandjoin(alpha)


def _cut_ellipse(image: pyvips.Image, around: Rgba) -> pyvips.Image:
    """Cuts the largest ellipse, with an antialiased edge and the colour `around` outside."""
    mask = _ellipse_mask(image.width, image.height) / 255
    if around[3] == 255:
        if len(set(around[:3])) > 1:
            image = to_colour(image)
        outside = list(around[: image.bands])
        return (image * mask + (1 - mask) * outside).rint().cast("uchar").copy(interpretation=image.interpretation)
    image = add_alpha(image)
    if around[3] == 0:
        colour, alpha = split_alpha(image)
        return colour.bandjoin((alpha * mask).rint().cast("uchar")).copy(interpretation=image.interpretation)
    image = to_colour(image)
    outside_image = solid_image(around, image)
    mixed = image.premultiply() * mask + outside_image.premultiply() * (1 - mask)
    return mixed.copy(interpretation="srgb").unpremultiply().rint().cast("uchar")


def _ellipse_mask(width: int, height: int) -> pyvips.Image:
    """Returns a mask of 0 outside to 255 inside."""
    x, y = width / 2, height / 2
    drawing = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">'
        f'<ellipse cx="{x}" cy="{y}" rx="{x}" ry="{y}"/></svg>'
    )
    return pyvips.Image.svgload_buffer(drawing.encode(), dpi=72).extract_band(3)
