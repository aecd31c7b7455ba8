"""What a rendition is to be: the words that the URL's parameters, the queue and the worker share."""

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
"""Parts of the width from the left and of the height from the top, 0 to 1."""
Gravity: TypeAlias = Direction | Literal["smart"] | FocalPoint
Rgba: TypeAlias = tuple[int, int, int, int]

# Raised where the same transformation would come out visibly different: what is kept is made anew then.
_RENDERER = b"1"


class Watermark(msgspec.Struct, frozen=True):
    """Another image of the account, laid over the finished picture. `width` is a part of the picture's."""

    image_id: ImageId
    position: Direction = "southeast"
    opacity: float = 1.0
    width: float = 0.25


class Transformation(msgspec.Struct, frozen=True):
    """In the order in which it is done: orient upright, `trim`, `rotate`, `flip` and `flop`, `crop`, resize to `fit`,
    colours, `blur` or `sharpen`, `ellipse`, `watermark`, encode.

    Sizes are in pixels of the result: a `dpr` is multiplied in. `percent` stands in place of `width` and `height`.
    `crop` is cut around `gravity` before the resize. `trim` is how far a colour may be from the corner's, 0 to 255.
    `frame` counts from 1. `background` is None where nothing was asked for: what is transparent stays so where the
    format can, and is white where it cannot.
    """

    format: Format
    quality: int
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
    blur: float = 0.0  # a standard deviation in pixels; 0 is none
    sharpen: float = 0.0
    ellipse: bool = False
    watermark: Watermark | None = None
    frame: int | None = None
    metadata: Literal["none", "copyright", "keep"] = "none"
    keep_location: bool = False


_encode = msgspec.msgpack.Encoder().encode


def digest(transformation: Transformation) -> str:
    """32 hexadecimal digits that name the rendition among those of its image."""
    return hashlib.sha256(_RENDERER + _encode(transformation)).hexdigest()[:32]
