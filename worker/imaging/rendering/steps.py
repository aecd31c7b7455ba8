"""What is done to a frame once it has its size: colours, blur or sharpness, shape."""

from __future__ import annotations

import pyvips

from service.renditions.transformation import Rgba, Transformation
from worker.imaging.pixels import premultiply, unpremultiply
from worker.imaging.rendering.pixels import (
    ground,
    in_colour,
    resized,
    solid,
    split,
    with_alpha,
)

# How much each band counts for brightness (ITU-R BT.709).
_LUMA = (0.2126, 0.7152, 0.0722)
_MIDDLE_GREY = 127.5
# A blur of more than this is one of a smaller picture: its cost grows with its radius, and the difference is not seen.
_MAX_SIGMA = 8.0
# Of a neighbour beside the pixel itself. libvips's default, 0.2, makes the deviation a quarter smaller than asked for.
_LEAST_WEIGHT = 0.02


def finish(image: pyvips.Image, asked: Transformation) -> pyvips.Image:
    """All steps between the resize and the watermark."""
    image = _colours(image, asked)
    if asked.blur > 0:
        image = _blurred(image, asked.blur)
    if asked.sharpen > 0:
        image = _sharpened(image, asked.sharpen)
    return _ellipse(image, ground(asked)) if asked.ellipse else image


def _colours(image: pyvips.Image, asked: Transformation) -> pyvips.Image:
    """One matrix and one offset for all of them, so that nothing is cut off in between."""
    saturation = 0.0 if asked.grayscale else asked.saturation
    if image.bands < 3:
        saturation = 1.0
    factor = asked.brightness * asked.contrast
    if saturation == factor == asked.contrast == 1:
        return image
    alpha = None
    if image.hasalpha():
        image, alpha = split(image)
    interpretation = image.interpretation
    if asked.grayscale and image.bands == 3:
        image, interpretation = image.recomb([list(_LUMA)]), "b-w"
    elif saturation != 1:
        image = image.recomb(
            [
                [(1 - saturation) * part + saturation * (row == column) for column, part in enumerate(_LUMA)]
                for row in range(3)
            ]
        )
    offset = _MIDDLE_GREY * (1 - asked.contrast)
    image = image.linear(factor, offset).rint().cast("uchar").copy(interpretation=interpretation)
    return image if alpha is None else image.bandjoin(alpha)


def _blurred(image: pyvips.Image, sigma: float) -> pyvips.Image:
    alpha = image.hasalpha()
    if alpha:
        image = premultiply(image)
    shrink = min(int(sigma / _MAX_SIGMA * 2), image.width, image.height)
    if sigma > _MAX_SIGMA and shrink > 1:
        # In floats: whole numbers would be seen as steps, once enlarged.
        small = image.shrink(shrink, shrink, ceil=True).cast("float").gaussblur(sigma / shrink, min_ampl=_LEAST_WEIGHT)
        large = resized(small, small.width * shrink, small.height * shrink)
        image = large.crop(0, 0, image.width, image.height).rint().cast("uchar")
    else:
        image = image.gaussblur(sigma, min_ampl=_LEAST_WEIGHT)
    return unpremultiply(image) if alpha else image


def _sharpened(image: pyvips.Image, sigma: float) -> pyvips.Image:
    if not image.hasalpha():
        return image.sharpen(sigma=sigma)
    colour, alpha = split(image)
    return colour.sharpen(sigma=sigma).bandjoin(alpha)


def _ellipse(image: pyvips.Image, around: Rgba) -> pyvips.Image:
    """The largest one; outside of it there is `around`, and its edge is a mixture."""
    mask = _ellipse_mask(image.width, image.height) / 255
    if around[3] == 255:
        if len(set(around[:3])) > 1:
            image = in_colour(image)
        outside = list(around[: image.bands])
        return (image * mask + (1 - mask) * outside).rint().cast("uchar").copy(interpretation=image.interpretation)
    image = with_alpha(image)
    if around[3] == 0:
        colour, alpha = split(image)
        return colour.bandjoin((alpha * mask).rint().cast("uchar")).copy(interpretation=image.interpretation)
    image = in_colour(image)
    ground = solid(around, image)
    mixed = image.premultiply() * mask + ground.premultiply() * (1 - mask)
    return mixed.copy(interpretation="srgb").unpremultiply().rint().cast("uchar")


def _ellipse_mask(width: int, height: int) -> pyvips.Image:
    """0 outside to 255 inside."""
    x, y = width / 2, height / 2
    drawing = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">'
        f'<ellipse cx="{x}" cy="{y}" rx="{x}" ry="{y}"/></svg>'
    )
    return pyvips.Image.svgload_buffer(drawing.encode(), dpi=72).extract_band(3)
