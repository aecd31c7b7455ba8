"""Turns an original into frames of the requested size, upright, in sRGB or grey."""

from __future__ import annotations

from collections.abc import Iterator

import pyvips

from service.images.probe import Rejected
from service.renditions import geometry
from service.renditions.geometry import Geometry, Place, Size
from service.renditions.transformation import MAX_PIXELS, Transformation
from worker.imaging.colour import ICC_PROFILE, convert
from worker.imaging.formats.format import Original
from worker.imaging.rendering.pixels import (
    add_alpha,
    background_colour,
    decode,
    flatten_on,
    resize,
    split_alpha,
    to_colour,
)
from worker.imaging.rendering.turning import Turn, requested_turn, upright
from worker.imaging.vips import premultiply, read_blob, unpremultiply

# The maximum side in which a drawing is drawn. A larger one is enlarged like a picture.
_MAX_DRAWN_SIDE = 16_384
# The maximum side of a picture before a crop. libvips accepts ten times as much.
_MAX_SCALED_SIDE = 10_000_000
_WHITE = (255, 255, 255, 255)


def place_frames(original: Original, transformation: Transformation) -> list[pyvips.Image]:
    """Returns one frame, or all frames of an animation, in memory. The first one determines where all are cropped."""
    if transformation.trim is not None or (transformation.crop is not None and transformation.gravity == "smart"):
        return list(_place_whole(original, transformation))
    return list(_place_streamed(original, transformation))


def _place_streamed(original: Original, transformation: Transformation) -> Iterator[pyvips.Image]:
    """Resizes the picture while it is decoded, and turns it afterwards, because it has fewer pixels then."""
    turn = upright(original.orientation).then(requested_turn(transformation))
    stored = Size(original.width, original.height)
    plan = _plan(turn.size(stored), original, transformation)
    fitter = _Fitter(plan, transformation)
    if plan.cropped is None or plan.cropped_at is None:
        image = original.load(_needed_scale(stored, turn.size(plan.scaled), original))
        for frame in _frames(image, original):
            yield fitter.fit(frame, image, turn)
        return
    image = original.load(1)  # a crop is in pixels of the original
    place = turn.origin(plan.cropped_at, plan.cropped, turn.size(stored))
    for frame in _frames(image, original):
        yield fitter.fit(_cut(frame, place, turn.size(plan.cropped)), image, turn)


def _place_whole(original: Original, transformation: Transformation) -> Iterator[pyvips.Image]:
    """Decodes the whole picture first, because its contents determine where it is cut."""
    image = original.load(1)
    profile = read_blob(image, ICC_PROFILE)
    box: tuple[Place, Size] | None = None
    fitter: _Fitter | None = None
    for stored in _frames(image, original):
        frame = upright(original.orientation).apply(convert(decode(stored, image), profile))
        if transformation.trim is not None:
            box = box or _find_edges(frame, transformation.trim, transformation)
            frame = _cut(frame, *box)
        frame = requested_turn(transformation).apply(frame)
        if fitter is None:
            fitter = _Fitter(_plan(Size(frame.width, frame.height), original, transformation), transformation)
        yield fitter.fit(fitter.crop(frame).copy_memory(), frame, Turn())


def _plan(size: Size, original: Original, transformation: Transformation) -> Geometry:
    try:
        plan = geometry.plan(*size, transformation)
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
    is_drawn = original.is_drawing and max(width, height) <= _MAX_DRAWN_SIDE and width * height <= MAX_PIXELS
    return scale if is_drawn else min(1.0, scale)


def _frames(image: pyvips.Image, original: Original) -> Iterator[pyvips.Image]:
    """Yields each frame. Those of an animation are in memory, because its file is read sequentially and only once."""
    if not original.keeps_alpha and image.hasalpha():
        image, _ = split_alpha(image)
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


class _Fitter:
    """Fits each frame into the plan. Remembers where the first frame was cut."""

    def __init__(self, plan: Geometry, transformation: Transformation) -> None:
        self._plan = plan
        self._transformation = transformation
        self._cropped_at = plan.cropped_at
        self._placed_at = plan.placed_at
        self._on_canvas = plan.size.width > plan.scaled.width or plan.size.height > plan.scaled.height
        if self._on_canvas and self._placed_at is None:  # nothing is cut off, so contents do not matter
            self._placed_at = geometry.place(plan.size, plan.scaled, "centre")

    def crop(self, frame: pyvips.Image) -> pyvips.Image:
        size = self._plan.cropped
        if size is None:
            return frame
        if self._cropped_at is None:
            self._cropped_at = _find_attention(frame, size)
        return _cut(frame, self._cropped_at, size)

    def fit(self, frame: pyvips.Image, source: pyvips.Image, turn: Turn) -> pyvips.Image:
        """Returns the frame resized, converted and turned.

        `frame` was cropped, and is computed from `source`, which may not be decoded yet.
        """
        profile = read_blob(source, ICC_PROFILE)
        scaled, size = self._plan.scaled, self._plan.size
        width, height = turn.size(scaled)
        # Colours are weighted by their alpha, so that those of transparent pixels do not bleed.
        is_premultiplied = frame.hasalpha() and (width, height) != (frame.width, frame.height)
        image = resize(premultiply(frame) if is_premultiplied else frame, width, height)
        if not self._on_canvas and self._placed_at is not None:
            image = _cut(image, turn.origin(self._placed_at, size, scaled), turn.size(size))
        image = decode(image, source)
        if is_premultiplied:
            image = unpremultiply(image)
        image = turn.apply(convert(image, profile))
        if self._placed_at is None:
            self._placed_at = _find_attention(image, size)
        if not self._on_canvas and (image.width, image.height) != size:
            image = _cut(image, self._placed_at, size)
        image = flatten_on(image, background_colour(self._transformation))
        return _pad(image, self._placed_at, size, self._transformation) if self._on_canvas else image


def _cut(image: pyvips.Image, place: Place, size: Size) -> pyvips.Image:
    return image if (image.width, image.height) == size else image.crop(*place, *size)


def _find_edges(image: pyvips.Image, distance: float, transformation: Transformation) -> tuple[Place, Size]:
    """Returns the box without edges in the colour of the upper left corner, or the whole image if it has only one
    colour.
    """
    flat = flatten_on(image, background_colour(transformation))
    if flat.hasalpha():
        flat = flatten_on(flat, _WHITE)
    left, top, width, height = flat.find_trim(threshold=distance, background=flat.getpoint(0, 0), line_art=True)
    if 0 in {width, height}:
        return Place(0, 0), Size(image.width, image.height)
    return Place(left, top), Size(width, height)


def _find_attention(image: pyvips.Image, size: Size) -> Place:
    crop = image.smartcrop(*size, interesting="attention")
    return Place(-crop.xoffset, -crop.yoffset)


def _pad(image: pyvips.Image, place: Place, size: Size, transformation: Transformation) -> pyvips.Image:
    colour = transformation.background
    if transformation.format == "jpeg":
        colour = background_colour(transformation)
    elif colour is None:
        colour = (0, 0, 0, 0) if image.hasalpha() else _WHITE
    if colour[3] < 255:
        image = add_alpha(image)
    if len(set(colour[:3])) > 1:
        image = to_colour(image)
    pixel = [*colour[: 1 if image.bands < 3 else 3], *colour[3 : 3 + image.hasalpha()]]
    return image.embed(-place.left, -place.top, *size, extend="background", background=pixel)
