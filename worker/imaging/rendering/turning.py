"""The eight ways to lay a picture down again on its grid of pixels, and where a frame lay before."""

from __future__ import annotations

from dataclasses import dataclass

import pyvips

from service.renditions.geometry import Place, Size
from service.renditions.transformation import Transformation


@dataclass(frozen=True, slots=True)
class Turn:
    """Columns become rows first, then left to right and top to bottom are mirrored."""

    swap: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    def then(self, later: Turn) -> Turn:
        x, y = (self.mirror_y, self.mirror_x) if later.swap else (self.mirror_x, self.mirror_y)
        return Turn(self.swap != later.swap, x != later.mirror_x, y != later.mirror_y)

    def size(self, size: Size) -> Size:
        """What comes out. What went in is the same of what came out."""
        return Size(size.height, size.width) if self.swap else size

    def origin(self, place: Place, size: Size, outer: Size) -> Place:
        """Where a frame of this size that lies there on the outcome, of the size `outer`, lay on what went in."""
        left = outer.width - place.left - size.width if self.mirror_x else place.left
        top = outer.height - place.top - size.height if self.mirror_y else place.top
        return Place(top, left) if self.swap else Place(left, top)

    def apply(self, image: pyvips.Image) -> pyvips.Image:
        """Of an image in memory: a file that is read once cannot be read by columns."""
        # A quarter turn to the right is a swap and a mirror.
        mirror_x = self.mirror_x != self.swap
        if self.swap:
            image = image.rot90()
        if mirror_x and self.mirror_y:
            return image.rot180()
        if mirror_x:
            return image.fliphor()
        return image.flipver() if self.mirror_y else image


# By the orientation of EXIF and by clockwise degrees.
_UPRIGHT = {
    1: Turn(),
    2: Turn(mirror_x=True),
    3: Turn(mirror_x=True, mirror_y=True),
    4: Turn(mirror_y=True),
    5: Turn(swap=True),
    6: Turn(swap=True, mirror_x=True),
    7: Turn(swap=True, mirror_x=True, mirror_y=True),
    8: Turn(swap=True, mirror_y=True),
}
_ROTATED = {0: _UPRIGHT[1], 90: _UPRIGHT[6], 180: _UPRIGHT[3], 270: _UPRIGHT[8]}


def upright(orientation: int) -> Turn:
    return _UPRIGHT[orientation]


def asked_turn(asked: Transformation) -> Turn:
    return _ROTATED[asked.rotate].then(Turn(mirror_x=asked.flop, mirror_y=asked.flip))
