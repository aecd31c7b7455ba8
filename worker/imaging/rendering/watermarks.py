"""Another image, laid over the finished frames."""

from __future__ import annotations

from dataclasses import dataclass

import pyvips

from service.renditions import geometry
from service.renditions.geometry import Place, Size
from service.renditions.transformation import Transformation, Watermark
from worker.imaging.formats.original import Frames
from worker.imaging.formats.source import File
from worker.imaging.rendering.opening import opened
from worker.imaging.rendering.pixels import composed, in_colour, split, with_alpha
from worker.imaging.rendering.placing import placed_frames

# Between it and the edge, of the shorter side of the picture.
_MARGIN = 0.02


@dataclass(frozen=True, slots=True)
class Mark:
    image: pyvips.Image
    place: Place

    def lay_on(self, image: pyvips.Image) -> pyvips.Image:
        marked = composed(in_colour(image), self.image, *self.place)
        return marked if image.hasalpha() else marked.extract_band(0, n=3)


def open_mark(file: File, asked: Watermark, size: Size, max_pixels: int) -> Mark:
    """For frames of this size. Raises what `opened` does."""
    margin = round(_MARGIN * min(size))
    inside = Size(max(1, size.width - 2 * margin), max(1, size.height - 2 * margin))
    # In a format with alpha, and no larger than the picture in either direction.
    box = Transformation(
        format="png",
        quality=100,
        width=min(inside.width, max(1, round(asked.width * size.width))),
        height=inside.height,
        enlarge=True,
    )
    with opened(file, max_pixels, Frames()) as original:
        (image,) = placed_frames(original, box)
    image = with_alpha(in_colour(image))
    if asked.opacity < 1:
        colour, alpha = split(image)
        image = colour.bandjoin((alpha * asked.opacity).rint().cast("uchar"))
    # A direction always says where.
    place = geometry.place(Size(image.width, image.height), inside, asked.position) or Place(0, 0)
    return Mark(image.copy(interpretation="srgb"), Place(margin + place.left, margin + place.top))
