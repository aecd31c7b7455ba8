"""Where pixels go: a pure function of the picture's size and what was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from service.renditions.transformation import MAX_PIXELS, MAX_SIDE, FocalPoint, Gravity, Transformation

_POINTS: dict[str, FocalPoint] = {
    "centre": (0.5, 0.5),
    "north": (0.5, 0),
    "northeast": (1, 0),
    "east": (1, 0.5),
    "southeast": (1, 1),
    "south": (0.5, 1),
    "southwest": (0, 1),
    "west": (0, 0.5),
    "northwest": (0, 0),
}


class Size(NamedTuple):
    width: int
    height: int


class Place(NamedTuple):
    """The upper left corner."""

    left: int
    top: int


@dataclass(frozen=True, slots=True)
class Geometry:
    """Cut `cropped` out, scale that to `scaled`, cut `size` out of it or lay it on a canvas of `size`.

    `cropped` is None where nothing is cut out before, and `cropped_at` and `placed_at` are None where the picture
    decides (`smart`). `placed_at` is where the upper left corner of `size` lies on `scaled`; on a canvas it is
    negative or 0, and where they are of one size it is 0, 0.
    """

    cropped: Size | None
    cropped_at: Place | None
    scaled: Size
    size: Size
    placed_at: Place | None


class TooLarge(Exception):
    """The result would have more than `MAX_SIDE` pixels a side or `MAX_PIXELS` in all; `size` is what it would have."""

    def __init__(self, size: Size) -> None:
        super().__init__(f"{size.width}x{size.height}")
        self.size = size


def plan(width: int, height: int, asked: Transformation) -> Geometry:
    """For a picture of this size once it is upright, trimmed and turned. Raises TooLarge."""
    source = Size(width, height)
    cropped, cropped_at = None, None
    if asked.crop is not None:
        cropped = Size(min(asked.crop[0], width), min(asked.crop[1], height))
        cropped_at = place(cropped, source, asked.gravity)
        source = cropped
    scaled, size = _resize(source, asked)
    if max(size) > MAX_SIDE or size.width * size.height > MAX_PIXELS:
        raise TooLarge(size)
    # On a canvas the point is the same part of the free space, which is negative.
    return Geometry(cropped, cropped_at, scaled, size, place(size, scaled, asked.gravity))


def size_after_rotation(width: int, height: int, asked: Transformation) -> Size:
    """The size after `rotate`."""
    return Size(height, width) if asked.rotate in {90, 270} else Size(width, height)


def place(inner: Size, outer: Size, gravity: Gravity) -> Place | None:
    """Where a frame of this size lies in another: a focal point is brought as near to its middle as can be, and a
    direction is pushed to its edge. None for `smart`, unless nothing is left to decide.
    """
    free = Size(outer.width - inner.width, outer.height - inner.height)
    if gravity == "smart":
        return Place(0, 0) if free == (0, 0) else None
    if isinstance(gravity, tuple):
        return Place(
            _around(gravity[0], inner.width, outer.width),
            _around(gravity[1], inner.height, outer.height),
        )
    part = _POINTS[gravity]
    return Place(_part(part[0], free.width), _part(part[1], free.height))


def _part(part: float, free: int) -> int:
    """Of an odd middle the smaller half, also where `free` is negative, as on a canvas."""
    return int(part * free)


def _around(part: float, inner: int, outer: int) -> int:
    low, high = sorted((0, outer - inner))
    return min(max(round(part * outer - inner / 2), low), high)


def _resize(source: Size, asked: Transformation) -> tuple[Size, Size]:
    """The size that `source` is scaled to, and the one that is cut out of that or that it is laid on."""
    if asked.percent is not None:
        scale = asked.percent / 100 if asked.enlarge else min(1.0, asked.percent / 100)
        size = _scaled(source, scale)
        return size, size
    if asked.width is None or asked.height is None:
        return _resize_one_side(source, asked)
    box = Size(asked.width, asked.height)
    match asked.fit:
        case "contain" | "scale-down":
            size = _inside(source, box, enlarge=asked.enlarge)
            return size, size
        case "pad":
            return _inside(source, box, enlarge=asked.enlarge), box
        case "fill":
            size = box if asked.enlarge else _shrink_to_fit(box, source)
            return size, size
        case "cover":
            size = box if asked.enlarge else _shrink_to_fit(box, source)
            return _outside(source, size), size


def _resize_one_side(source: Size, asked: Transformation) -> tuple[Size, Size]:
    scale = 1.0
    if asked.width is not None:
        scale = asked.width / source.width
    elif asked.height is not None:
        scale = asked.height / source.height
    if not asked.enlarge:
        scale = min(1.0, scale)
    size = _scaled(source, scale)
    return size, size


def _inside(source: Size, box: Size, *, enlarge: bool) -> Size:
    scale = min(box.width / source.width, box.height / source.height)
    size = _scaled(source, scale if enlarge else min(1.0, scale))
    return Size(min(size.width, box.width), min(size.height, box.height))


def _outside(source: Size, box: Size) -> Size:
    scale = max(box.width / source.width, box.height / source.height)
    size = _scaled(source, scale)
    return Size(max(size.width, box.width), max(size.height, box.height))


def _shrink_to_fit(box: Size, source: Size) -> Size:
    """The box in its own proportions, so that no side is longer than the picture's."""
    return _scaled(box, min(1.0, source.width / box.width, source.height / box.height))


def _scaled(size: Size, scale: float) -> Size:
    return Size(max(1, _half_up(size.width * scale)), max(1, _half_up(size.height * scale)))


def _half_up(value: float) -> int:
    """As browsers and image libraries round; Python's own rounds half to even."""
    return int(value + 0.5 + 1e-9)
