"""What a probe keeps of a picture."""

from __future__ import annotations

from dataclasses import dataclass

import pyvips

from worker.imaging.colour import ICC_PROFILE
from worker.imaging.exif import read_exif
from worker.imaging.formats.fields import blob, orientation_of
from worker.imaging.pixels import Small, reduce


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture. `width` and `height` are as stored; `orientation` still has to be applied to them and to
    `small`. `exif` is as `read_exif` answers it.
    """

    width: int
    height: int
    orientation: int
    pages: int
    has_alpha: bool
    exif: dict[str, object]
    small: Small


def picture_of(
    image: pyvips.Image, width: int, height: int, *, pages: int = 1, first: pyvips.Image | None = None
) -> Picture:
    """Decodes an image that was admitted, or its `first` frame alone. It may be smaller than `width` and `height`."""
    return Picture(
        width=width,
        height=height,
        orientation=orientation_of(image),
        pages=pages,
        has_alpha=bool(image.hasalpha()),
        exif=read_exif(blob(image, "exif-data")),
        small=reduce(image if first is None else first, blob(image, ICC_PROFILE)),
    )
