"""The eight turns of a picture by rotating and mirroring, which are the orientations of EXIF."""

from __future__ import annotations

from dataclasses import dataclass

import pyvips

from service.renditions.geometry import Place, Size
from service.renditions.transformation import Transformation


@dataclass(frozen=True, slots=True)
class Turn:
    """First exchanges rows and columns (`swap`), then mirrors left and right, and top and bottom."""

    swap: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    def then(self, later: Turn) -> Turn:
        """Returns the turn that does this one first, and `later` afterwards."""
        x, y = (self.mirror_y, self.mirror_x) if later.swap else (self.mirror_x, self.mirror_y)
        return Turn(self.swap != later.swap, x != later.mirror_x, y != later.mirror_y)

    def size(self, size: Size) -> Size:
        """Returns the turned size; and for a turned size, the size before the turn."""
        return Size(size.height, size.width) if self.swap else size

    def origin(self, place: Place, size: Size, outer: Size) -> Place:
        """Returns where a part of the turned picture was before the turn.

        The part has this size and is at `place` of the turned picture, whose size is `outer`.
        """
        left = outer.width - place.left - size.width if self.mirror_x else place.left
        top = outer.height - place.top - size.height if self.mirror_y else place.top
        return Place(top, left) if self.swap else Place(left, top)

    def apply(self, image: pyvips.Image) -> pyvips.Image:
        """Turns an image in memory: a file that is read sequentially cannot be read by columns."""
        # `rot90` turns clockwise, which is a swap and a mirror.
        mirror_x = self.mirror_x != self.swap
        if self.swap:
            image = image.rot90()
        if mirror_x and self.mirror_y:
            return image.rot180()
        if mirror_x:
            return image.fliphor()
        return image.flipver() if self.mirror_y else image


# By EXIF orientation, and by degrees clockwise.
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
    """Returns the turn that makes a picture of this EXIF orientation upright."""
    return _UPRIGHT[orientation]


def requested_turn(transformation: Transformation) -> Turn:
    """Returns the turn of the parameters: rotate first, then flop and flip."""
    return _ROTATED[transformation.rotate].then(Turn(mirror_x=transformation.flop, mirror_y=transformation.flip))
