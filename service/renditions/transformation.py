"""The description of a rendition: as requested, and normalized for the queue and the worker."""

from __future__ import annotations

import hashlib
from typing import Literal, TypeAlias

import msgspec

from service.ids import ImageId

MAX_SIDE = 8192
MAX_PIXELS = 50_000_000

Format: TypeAlias = Literal["jpeg", "png", "webp", "avif", "gif"]
Fit: TypeAlias = Literal["contain", "cover", "scale-down", "fill", "pad"]
Direction: TypeAlias = Literal[
    "centre", "north", "northeast", "east", "southeast", "south", "southwest", "west", "northwest"
]
FocalPoint: TypeAlias = tuple[float, float]
"""Fractions of the width from the left and of the height from the top, 0 to 1."""
Gravity: TypeAlias = Direction | Literal["smart"] | FocalPoint
Metadata: TypeAlias = Literal["none", "copyright", "keep"]
Rgba: TypeAlias = tuple[int, int, int, int]

# Increase this when the worker renders the same transformation visibly differently: then renditions on disk are no
# longer found, and are rendered again.
_RENDERER = b"1"


class Watermark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another image of the account, laid over the result. `width` is a fraction of the result's width."""

    image_id: ImageId
    position: Direction = "southeast"
    opacity: float = 1.0
    width: float = 0.25


class RenditionParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The parameters of a request, before its image is known.

    The steps, in this order: orient upright, `trim`, `rotate`, `flip` and `flop`, `crop`, resize to `fit`, colours,
    `blur` or `sharpen`, `ellipse`, `watermark`, encode.

    Sizes are in pixels of the result; `dpr` is multiplied in. `percent` replaces `width` and `height`. `crop` is cut
    out around `gravity` before the resize. `trim` is how much a colour may differ from the corner's, 0 to 255. `frame`
    counts from 1. Without a `background`, transparency stays if the format can hold it, and becomes white otherwise.

    The order of the fields, their names and their defaults are a part of every digest: a new field goes to the end, and
    changes all digests.
    """

    format: Format | None = None  # None: negotiated with the client
    quality: int | None = None  # None: the format's default
    width: int | None = None
    height: int | None = None
    percent: float | None = None
    crop: tuple[int, int] | None = None
    fit: Fit = "contain"
    gravity: Gravity = "centre"
    enlarge: bool = False
    background: Rgba | None = None
    trim: float | None = None
    rotate: Literal[0, 90, 180, 270] = 0
    flip: bool = False  # upside down
    flop: bool = False  # left to right
    grayscale: bool = False
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    blur: float = 0.0  # standard deviation in pixels; 0 is none
    sharpen: float = 0.0
    ellipse: bool = False
    watermark: Watermark | None = None
    frame: int | None = None
    metadata: Metadata = "none"
    keep_location: bool = False


class Transformation(RenditionParams, frozen=True, forbid_unknown_fields=True):
    """Complete parameters: `service.renditions.normalize` resolves all defaults for an image.

    Equivalent requests have equal transformations, and therefore share one rendition.
    """

    format: Format
    quality: int


_encode = msgspec.msgpack.Encoder().encode


def digest(transformation: Transformation) -> str:
    """Returns 32 hexadecimal digits that identify the rendition among those of its image."""
    return hashlib.sha256(_RENDERER + _encode(transformation)).hexdigest()[:32]
