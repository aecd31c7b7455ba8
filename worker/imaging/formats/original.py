"""A source, its header read and admitted, whose pixels are decoded no larger than they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pyvips

from worker.imaging.exif import read_orientation
from worker.imaging.formats.fields import blob, orientation_of, valid_orientation


@dataclass(frozen=True, slots=True)
class Frames:
    """Of an animation, or pages: `number` counts from 1, and past the last is the last. Without one the first is
    meant or, of an animation, `all`.
    """

    number: int | None = None
    all: bool = False


@dataclass(frozen=True, slots=True)
class Animation:
    """`delays` are in ms, one a frame; `loop` is how often it plays, 0 for ever. `frames` yields each frame in memory,
    if the decoder composes them one by one; then `load` returns the first alone.
    """

    delays: list[int]
    loop: int
    frames: Callable[[], Iterator[pyvips.Image]] | None = None


@dataclass(frozen=True, slots=True)
class Original:
    """Sizes are of one frame, as stored. `load` answers with all of it, scaled by no less than the factor that it is
    given (1 or less, or more for a drawing), frames below each other. `exif` is a block, or a TIFF by its descriptor.
    """

    width: int
    height: int
    load: Callable[[float], pyvips.Image]
    orientation: int = 1
    drawing: bool = False  # has no pixels of its own
    animation: Animation | None = None
    keeps_alpha: bool = True  # False where the decoder adds a band that says nothing
    exif: bytes | int | None = None
    read_xmp: Callable[[], bytes | None] = field(default=lambda: None)


def original_of(
    image: pyvips.Image,
    *,
    load: Callable[[float], pyvips.Image] | None = None,
    animation: Animation | None = None,
    keeps_alpha: bool = True,
    exif: bytes | int | None = None,
) -> Original:
    """Of the size of an image that was admitted, which is what is loaded where `load` does not know better.

    `exif` is the file's block, if libvips does not know it or changes it, or the descriptor of a TIFF. The orientation
    is that of the block, if there is one.
    """
    exif = blob(image, "exif-data") if exif is None else exif
    return Original(
        image.width,
        image.height,
        load or (lambda _: image),
        orientation=valid_orientation(read_orientation(exif)) if isinstance(exif, bytes) else orientation_of(image),
        animation=animation,
        keeps_alpha=keeps_alpha,
        exif=exif,
        read_xmp=lambda: blob(image, "xmp-data"),
    )
