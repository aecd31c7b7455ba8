"""From a source to frames of the size that was asked for, upright, in sRGB or grey."""

from __future__ import annotations

from collections.abc import Iterator

import pyvips

from service.images.probe import Rejected
from service.renditions import geometry
from service.renditions.geometry import Geometry, Place, Size
from service.renditions.transformation import MAX_PIXELS, Transformation
from worker.imaging.colour import ICC_PROFILE, convert
from worker.imaging.formats.fields import blob
from worker.imaging.formats.original import Original
from worker.imaging.pixels import premultiply, unpremultiply
from worker.imaging.rendering.pixels import (
    decoded,
    ground,
    in_colour,
    laid_on,
    resized,
    split,
    with_alpha,
)
from worker.imaging.rendering.turning import Turn, asked_turn, upright

# A drawing is not drawn larger than this; what is asked for beyond is enlarged as a picture is.
_MAX_DRAWN_SIDE = 16_384
# Of a picture that is only cut out of: libvips counts no further than ten times this.
_MAX_SCALED_SIDE = 10_000_000
_WHITE = (255, 255, 255, 255)


def placed_frames(original: Original, asked: Transformation) -> list[pyvips.Image]:
    """In memory; one, or all of an animation. What the picture decides is decided by the first frame for all."""
    if asked.trim is not None or (asked.crop is not None and asked.gravity == "smart"):
        return list(_from_whole(original, asked))
    return list(_streamed(original, asked))


def _streamed(original: Original, asked: Transformation) -> Iterator[pyvips.Image]:
    """Resized as it is decoded, and turned afterwards, when there are fewer pixels."""
    turn = upright(original.orientation).then(asked_turn(asked))
    stored = Size(original.width, original.height)
    plan = _plan(turn.size(stored), original, asked)
    fitting = _Fitting(plan, asked)
    if plan.cropped is None or plan.cropped_at is None:
        image = original.load(_needed_scale(stored, turn.size(plan.scaled), original))
        for frame in _frames(image, original):
            yield fitting.fit(frame, image, turn)
        return
    image = original.load(1)  # a crop counts the picture's own pixels
    place = turn.origin(plan.cropped_at, plan.cropped, turn.size(stored))
    for frame in _frames(image, original):
        yield fitting.fit(_cut(frame, place, turn.size(plan.cropped)), image, turn)


def _from_whole(original: Original, asked: Transformation) -> Iterator[pyvips.Image]:
    """Where something is looked for in the picture, all of it has to be there."""
    image = original.load(1)
    profile = blob(image, ICC_PROFILE)
    box: tuple[Place, Size] | None = None
    fitting: _Fitting | None = None
    for stored in _frames(image, original):
        frame = upright(original.orientation).apply(convert(decoded(stored, image), profile))
        if asked.trim is not None:
            box = box or _find_edges(frame, asked.trim, asked)
            frame = _cut(frame, *box)
        frame = asked_turn(asked).apply(frame)
        if fitting is None:
            fitting = _Fitting(_plan(Size(frame.width, frame.height), original, asked), asked)
        yield fitting.fit(fitting.crop(frame).copy_memory(), frame, Turn())


def _plan(size: Size, original: Original, asked: Transformation) -> Geometry:
    try:
        plan = geometry.plan(*size, asked)
    except geometry.TooLarge as error:
        raise Rejected("rendition-too-large") from error
    frames = len(original.animation.delays) if original.animation else 1
    whole = plan.scaled if plan.placed_at is None else plan.size
    if whole.width * whole.height * frames > MAX_PIXELS or max(plan.scaled) > _MAX_SCALED_SIDE:
        raise Rejected("rendition-too-large")
    return plan


def _needed_scale(stored: Size, scaled: Size, original: Original) -> float:
    scale = max(scaled.width / stored.width, scaled.height / stored.height)
    width, height = stored.width * scale, stored.height * scale
    drawn = original.drawing and max(width, height) <= _MAX_DRAWN_SIDE and width * height <= MAX_PIXELS
    return scale if drawn else min(1.0, scale)


def _frames(image: pyvips.Image, original: Original) -> Iterator[pyvips.Image]:
    """Each of an animation in memory, for their file is read once, from its start to its end."""
    if not original.keeps_alpha and image.hasalpha():
        image, _ = split(image)
    if original.animation is None:
        yield image
        return
    if original.animation.frames is not None:
        yield from original.animation.frames()
        return
    width, height = original.width, original.height
    if (image.width, image.height) != (width, height * len(original.animation.delays)):
        raise Rejected("damaged-image")  # not the frames that were admitted
    region = pyvips.Region.new(image)
    for top in range(0, image.height, height):
        pixels = region.fetch(0, top, width, height)
        frame = pyvips.Image.new_from_memory(pixels, width, height, image.bands, image.format)
        yield frame.copy(interpretation=image.interpretation)


class _Fitting:
    """Done to each frame alike: remembers where the first one was cut."""

    def __init__(self, plan: Geometry, asked: Transformation) -> None:
        self._plan = plan
        self._asked = asked
        self._cropped_at = plan.cropped_at
        self._placed_at = plan.placed_at
        self._on_canvas = plan.size.width > plan.scaled.width or plan.size.height > plan.scaled.height
        if self._on_canvas and self._placed_at is None:  # nothing is cut off that the picture could decide about
            self._placed_at = geometry.place(plan.size, plan.scaled, "centre")

    def crop(self, frame: pyvips.Image) -> pyvips.Image:
        size = self._plan.cropped
        if size is None:
            return frame
        if self._cropped_at is None:
            self._cropped_at = _find_attention(frame, size)
        return _cut(frame, self._cropped_at, size)

    def fit(self, frame: pyvips.Image, source: pyvips.Image, turn: Turn) -> pyvips.Image:
        """`frame` is made of `source`, which may still have to be decoded, and was cropped. It is turned last."""
        profile = blob(source, ICC_PROFILE)
        scaled, size = self._plan.scaled, self._plan.size
        width, height = turn.size(scaled)
        # A colour counts for as much as is seen of it.
        translucent = frame.hasalpha() and (width, height) != (frame.width, frame.height)
        image = resized(premultiply(frame) if translucent else frame, width, height)
        if not self._on_canvas and self._placed_at is not None:
            image = _cut(image, turn.origin(self._placed_at, size, scaled), turn.size(size))
        image = decoded(image, source)
        if translucent:
            image = unpremultiply(image)
        image = turn.apply(convert(image, profile))
        if self._placed_at is None:
            self._placed_at = _find_attention(image, size)
        if not self._on_canvas and (image.width, image.height) != size:
            image = _cut(image, self._placed_at, size)
        image = laid_on(image, ground(self._asked))
        return _pad(image, self._placed_at, size, self._asked) if self._on_canvas else image


def _cut(image: pyvips.Image, place: Place, size: Size) -> pyvips.Image:
    return image if (image.width, image.height) == size else image.crop(*place, *size)


def _find_edges(image: pyvips.Image, distance: float, asked: Transformation) -> tuple[Place, Size]:
    """Of what is not of the colour of the upper left corner; all of it where nothing is."""
    seen = laid_on(image, ground(asked))
    if seen.hasalpha():
        seen = laid_on(seen, _WHITE)
    left, top, width, height = seen.find_trim(threshold=distance, background=seen.getpoint(0, 0), line_art=True)
    if 0 in {width, height}:
        return Place(0, 0), Size(image.width, image.height)
    return Place(left, top), Size(width, height)


def _find_attention(image: pyvips.Image, size: Size) -> Place:
    found = image.smartcrop(*size, interesting="attention")
    return Place(-found.xoffset, -found.yoffset)


def _pad(image: pyvips.Image, place: Place, size: Size, asked: Transformation) -> pyvips.Image:
    colour = asked.background
    if asked.format == "jpeg":
        colour = ground(asked)
    elif colour is None:
        colour = (0, 0, 0, 0) if image.hasalpha() else _WHITE
    if colour[3] < 255:
        image = with_alpha(image)
    if len(set(colour[:3])) > 1:
        image = in_colour(image)
    pixel = [*colour[: 1 if image.bands < 3 else 3], *colour[3 : 3 + image.hasalpha()]]
    return image.embed(-place.left, -place.top, *size, extend="background", background=pixel)
