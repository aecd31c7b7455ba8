"""What a probe keeps of a picture."""

from __future__ import annotations

from dataclasses import dataclass

import pyvips

from worker.imaging.colour import ICC_PROFILE
from worker.imaging.exif import read_exif, read_orientation
from worker.imaging.formats.fields import blob, orientation_of, valid_orientation
from worker.imaging.pixels import Small, reduce


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture. `width` and `height` are as stored; `orientation` still has to be applied to them and to
    `small`. `exif` is as `read_exif` answers it. `applied_orientation` is what the decoder has done already, as the
    container says.
    """

    width: int
    height: int
    orientation: int
    pages: int
    has_alpha: bool
    exif: dict[str, object]
    small: Small
    applied_orientation: int = 1


def picture_of(
    image: pyvips.Image,
    width: int,
    height: int,
    *,
    pages: int = 1,
    first: pyvips.Image | None = None,
    exif: bytes | None = None,
) -> Picture:
    """Decodes an image that was admitted, or its `first` frame alone. It may be smaller than `width` and `height`.

    `exif` is the file's block, if libvips does not know it or changes it. The orientation is that of the block, if any:
    libvips knows that of TIFF, and that of EXIF by another reader.
    """
    block = blob(image, "exif-data") if exif is None else exif
    return Picture(
        width=width,
        height=height,
        orientation=orientation_of(image) if block is None else valid_orientation(read_orientation(block)),
        pages=pages,
        has_alpha=bool(image.hasalpha()),
        exif=read_exif(block),
        small=reduce(image if first is None else first, blob(image, ICC_PROFILE)),
    )
