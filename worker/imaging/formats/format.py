"""The interface of a format: the picture of a probe, the original of a rendition, and the removal of its locations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pyvips

from worker.imaging.colour import ICC_PROFILE
from worker.imaging.exif import read_exif, read_orientation
from worker.imaging.formats.source import Source
from worker.imaging.location_removal.regions import Copy
from worker.imaging.small_copy import SmallCopy, make_small_copy
from worker.imaging.vips import image_orientation, read_blob, valid_orientation


@dataclass(frozen=True, slots=True)
class DecodedPicture:
    """The result of decoding a picture for a probe.

    `width` and `height` are as stored. `orientation` still has to be applied to them and to `small_copy`.
    `applied_orientation` is the orientation of the container, which the decoder has already applied. `exif` comes from
    `read_exif`.
    """

    width: int
    height: int
    orientation: int
    pages: int
    has_alpha: bool
    exif: dict[str, object]
    small_copy: SmallCopy
    applied_orientation: int = 1


def decode_picture(
    image: pyvips.Image,
    width: int,
    height: int,
    *,
    pages: int = 1,
    first: pyvips.Image | None = None,
    exif: bytes | None = None,
) -> DecodedPicture:
    """Decodes an image whose size was checked, or only its `first` frame. It may be smaller than `width` and `height`.

    `exif` is the file's block, if libvips does not know or changes it. If there is a block, it decides the orientation:
    libvips parses EXIF differently, but its orientation of a TIFF is right.
    """
    block = read_blob(image, "exif-data") if exif is None else exif
    return DecodedPicture(
        width=width,
        height=height,
        orientation=image_orientation(image) if block is None else valid_orientation(read_orientation(block)),
        pages=pages,
        has_alpha=bool(image.hasalpha()),
        exif=read_exif(block),
        small_copy=make_small_copy(image if first is None else first, read_blob(image, ICC_PROFILE)),
    )


@dataclass(frozen=True, slots=True)
class FrameSelection:
    """The frame of an animation, or page of a document, to use. `number` counts from 1; a number beyond the last frame
    means the last. Without a number it is the first, or `all` frames of an animation.
    """

    number: int | None = None
    all: bool = False


@dataclass(frozen=True, slots=True)
class Animation:
    """`delays` are in ms, one per frame. `loop` is how many times it plays, 0 for infinitely.

    `frames` yields each frame in memory, if the decoder composes them one by one. Then `load` returns the first frame.
    """

    delays: list[int]
    loop: int
    frames: Callable[[], Iterator[pyvips.Image]] | None = None


@dataclass(frozen=True, slots=True)
class Original:
    """The source of a rendition. Its header was read and its size checked; `load` decodes the pixels.

    `width` and `height` are of one frame, as stored. `load` takes a scale (at most 1, or more for a drawing), and
    returns the picture scaled by at least that, with its frames below each other. `exif` is a block, or the descriptor
    of a TIFF.
    """

    width: int
    height: int
    load: Callable[[float], pyvips.Image]
    orientation: int = 1
    is_drawing: bool = False  # vectors, which have no size in pixels
    animation: Animation | None = None
    keeps_alpha: bool = True  # False if the decoder adds an alpha that the file does not have
    exif: bytes | int | None = None
    read_xmp: Callable[[], bytes | None] = field(default=lambda: None)


def original_from(
    image: pyvips.Image,
    *,
    load: Callable[[float], pyvips.Image] | None = None,
    animation: Animation | None = None,
    keeps_alpha: bool = True,
    exif: bytes | int | None = None,
) -> Original:
    """Returns the original of an image whose size was checked. `load` defaults to the image itself.

    `exif` is the file's block, if libvips does not know or changes it, or the descriptor of a TIFF. If there is a
    block, it decides the orientation.
    """
    exif = read_blob(image, "exif-data") if exif is None else exif
    return Original(
        image.width,
        image.height,
        load or (lambda _: image),
        orientation=valid_orientation(read_orientation(exif)) if isinstance(exif, bytes) else image_orientation(image),
        animation=animation,
        keeps_alpha=keeps_alpha,
        exif=exif,
        read_xmp=lambda: read_blob(image, "xmp-data"),
    )


@dataclass(frozen=True, slots=True)
class Format:
    """A format as its module declares it. `name` is the one that `sniff` returns, a key of `MIME_TYPES`.

    `loaders` are the classes of libvips that may read it, without their prefix "VipsForeignLoad"; all others are
    blocked. `probe` decodes the whole picture once. `open_original` reads the header. Both check the size in the header
    before any pixel is decoded, and raise errors that `open_source` turns into `Rejected`. `blank_locations` removes
    locations from the metadata.
    """

    name: str
    loaders: tuple[str, ...]
    probe: Callable[[Source], DecodedPicture]
    open_original: Callable[[Source, FrameSelection], Original]
    blank_locations: Callable[[Copy], None]
