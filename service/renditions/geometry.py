"""The geometry of a rendition: pure functions of the picture's size and the transformation."""

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
    """Cut out `cropped`, scale it to `scaled`, then cut `size` out of that or lay it on a canvas of `size`.

    `cropped` is None if nothing is cut out first. `cropped_at` and `placed_at` are None if the content of the picture
    decides (`smart`). `placed_at` is where the upper left corner of `size` lies on `scaled`: zero or negative on a
    canvas, and 0, 0 if both have the same size.
    """

    cropped: Size | None
    cropped_at: Place | None
    scaled: Size
    size: Size
    placed_at: Place | None


class TooLarge(Exception):
    """The result would exceed `MAX_SIDE` pixels a side or `MAX_PIXELS` in all; `size` is the size it would have."""

    def __init__(self, size: Size) -> None:
        super().__init__(f"{size.width}x{size.height}")
        self.size = size


def plan(width: int, height: int, transformation: Transformation) -> Geometry:
    """Returns the geometry of a picture that has this size once it is upright, trimmed and rotated. Raises TooLarge."""
    source = Size(width, height)
    cropped, cropped_at = None, None
    if transformation.crop is not None:
        cropped = Size(min(transformation.crop[0], width), min(transformation.crop[1], height))
        cropped_at = place(cropped, source, transformation.gravity)
        source = cropped
    scaled, size = _resize(source, transformation)
    if max(size) > MAX_SIDE or size.width * size.height > MAX_PIXELS:
        raise TooLarge(size)
    # On a canvas the free space is negative, and gravity divides it in the same proportion.
    return Geometry(cropped, cropped_at, scaled, size, place(size, scaled, transformation.gravity))


def size_after_rotation(width: int, height: int, transformation: Transformation) -> Size:
    """Returns the size after `rotate`."""
    return Size(height, width) if transformation.rotate in {90, 270} else Size(width, height)


def place(inner: Size, outer: Size, gravity: Gravity) -> Place | None:
    """Returns where `inner` lies in `outer`.

    A focal point comes as near to the middle of `inner` as possible; a direction pushes it to that edge. Returns None
    for `smart`, unless both have the same size.
    """
    free = Size(outer.width - inner.width, outer.height - inner.height)
    if gravity == "smart":
        return Place(0, 0) if free == (0, 0) else None
    if isinstance(gravity, tuple):
        return Place(
            _centre_on(gravity[0], inner.width, outer.width),
            _centre_on(gravity[1], inner.height, outer.height),
        )
    x, y = _POINTS[gravity]
    # int() rounds towards 0: an odd middle gives the smaller half, on a canvas (where `free` is negative) too.
    return Place(int(x * free.width), int(y * free.height))


def _centre_on(fraction: float, inner: int, outer: int) -> int:
    low, high = sorted((0, outer - inner))
    return min(max(round(fraction * outer - inner / 2), low), high)


def _resize(source: Size, transformation: Transformation) -> tuple[Size, Size]:
    """Returns the size that `source` is scaled to, and the size that is cut out of that, or of the canvas."""
    if transformation.percent is not None:
        scale = transformation.percent / 100 if transformation.enlarge else min(1.0, transformation.percent / 100)
        size = _scaled(source, scale)
        return size, size
    if transformation.width is None or transformation.height is None:
        return _resize_one_side(source, transformation)
    box = Size(transformation.width, transformation.height)
    match transformation.fit:
        case "contain" | "scale-down":
            size = _inside(source, box, enlarge=transformation.enlarge)
            return size, size
        case "pad":
            return _inside(source, box, enlarge=transformation.enlarge), box
        case "fill":
            size = box if transformation.enlarge else _shrink_to_fit(box, source)
            return size, size
        case "cover":
            size = box if transformation.enlarge else _shrink_to_fit(box, source)
            return _outside(source, size), size


def _resize_one_side(source: Size, transformation: Transformation) -> tuple[Size, Size]:
    scale = 1.0
    if transformation.width is not None:
        scale = transformation.width / source.width
    elif transformation.height is not None:
        scale = transformation.height / source.height
    if not transformation.enlarge:
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
    """Returns the box, shrunk in its own proportions until no side is longer than the picture's."""
    return _scaled(box, min(1.0, source.width / box.width, source.height / box.height))


def _scaled(size: Size, scale: float) -> Size:
    return Size(max(1, _half_up(size.width * scale)), max(1, _half_up(size.height * scale)))


def _half_up(value: float) -> int:
    """Rounds as browsers and image libraries do; Python's round() rounds half to even."""
    return int(value + 0.5 + 1e-9)
