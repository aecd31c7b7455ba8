"""A watermark: another image that is composited over the finished frames."""

from __future__ import annotations

from dataclasses import dataclass

import pyvips

from service.renditions import geometry
from service.renditions.geometry import Place, Size
from service.renditions.transformation import Transformation, Watermark
from worker.imaging.formats import open_original
from worker.imaging.formats.format import FrameSelection
from worker.imaging.formats.source import File
from worker.imaging.rendering.pixels import add_alpha, composite, split_alpha, to_colour
from worker.imaging.rendering.placing import place_frames

# The margin to the edge, as a part of the picture's shorter side.
_MARGIN = 0.02


@dataclass(frozen=True, slots=True)
class WatermarkLayer:
    """The resized image of a watermark, and its position on a frame."""

    image: pyvips.Image
    place: Place

    def apply(self, image: pyvips.Image) -> pyvips.Image:
        result = composite(to_colour(image), self.image, *self.place)
        return result if image.hasalpha() else result.extract_band(0, n=3)


def open_watermark(file: File, watermark: Watermark, size: Size, max_pixels: int) -> WatermarkLayer:
    """Opens the watermark for frames of this size. Raises what `open_original` does."""
    margin = round(_MARGIN * min(size))
    inside = Size(max(1, size.width - 2 * margin), max(1, size.height - 2 * margin))
    # In a format with alpha, and not larger than the frame in either direction.
    placement = Transformation(
        format="png",
        quality=100,
        width=min(inside.width, max(1, round(watermark.width * size.width))),
        height=inside.height,
        enlarge=True,
    )
    with open_original(file, max_pixels, FrameSelection()) as original:
        (image,) = place_frames(original, placement)
    image = add_alpha(to_colour(image))
    if watermark.opacity < 1:
        colour, alpha = split_alpha(image)
        image = colour.bandjoin((alpha * watermark.opacity).rint().cast("uchar"))
    # `place` returns None for "smart" only, which no watermark has.
    place = geometry.place(Size(image.width, image.height), inside, watermark.position) or Place(0, 0)
    return WatermarkLayer(image.copy(interpretation="srgb"), Place(margin + place.left, margin + place.top))
