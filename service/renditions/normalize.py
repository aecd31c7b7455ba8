"""From what was asked for, and the picture that it was asked of, to the one rendition that it is."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import msgspec

from service.errors import ServiceError
from service.images.models import Image
from service.renditions import formats, geometry
from service.renditions.geometry import Geometry, Size
from service.renditions.parameters import RenditionParams
from service.renditions.transformation import MAX_PIXELS, MAX_SIDE, Format, Transformation

Value = TypeVar("Value")

# On each encoder's own scale, for about the same look; what has no quality is of one.
_QUALITIES: dict[Format, int] = {"jpeg": 80, "webp": 78, "avif": 52, "png": 100, "gif": 100}
_LOSSLESS = frozenset({"png", "gif"})
# What libvips reads all the frames of, and what it writes them to.
_ANIMATED = frozenset({"gif", "webp"})
_PAGED = _ANIMATED | {"tiff"}


class RenditionPlan(NamedTuple):
    """`plan` is for the picture before it is trimmed; `frames` are those of the result."""

    transformation: Transformation
    plan: Geometry
    frames: int


def normalize(
    asked: RenditionParams, image: Image, *, accepted: tuple[Format, ...], widths: Sequence[int]
) -> RenditionPlan:
    """Returns the rendition of `image` that `asked` ask for.

    `accepted` are the modern formats that the client accepts, `widths` the allowed widths in rising order; if there are
    none, every width is allowed. Raises `invalid-parameter` and `rendition-too-large`.
    """
    if asked.frame is not None and asked.frame > _frames(image):
        raise ServiceError("invalid-parameter", f"frame: the picture has {_frames(image)}, which count from 1.")
    form = asked.format or formats.choose_format(
        _found(image.format), accepted, transparent=_is_transparent(asked, image), animated=_is_animated(asked, image)
    )
    transformation = _transform(asked, form)
    source = geometry.size_after_rotation(_found(image.width), _found(image.height), transformation)
    try:
        plan = geometry.plan(*source, transformation)
        if widths:
            transformation = _snap(transformation, plan.size, widths)
            plan = geometry.plan(*source, transformation)
    except geometry.TooLarge as error:
        raise _too_large(error.size, 1) from error
    frames = _frames(image) if _is_animated(asked, image) and form in _ANIMATED else 1
    if frames * plan.size.width * plan.size.height > MAX_PIXELS:
        raise _too_large(plan.size, frames)
    return RenditionPlan(transformation, plan, frames)


def _transform(asked: RenditionParams, form: Format) -> Transformation:
    return Transformation(
        format=form,
        quality=_QUALITIES[form] if asked.quality is None or form in _LOSSLESS else asked.quality,
        width=asked.width,
        height=asked.height,
        percent=asked.percent,
        crop=asked.crop,
        fit="contain" if asked.fit in {None, "scale-down"} else asked.fit,
        gravity=asked.gravity or "centre",
        enlarge=asked.enlarge,
        background=asked.background,
        trim=asked.trim,
        rotate=asked.rotate,
        flip=asked.flip,
        flop=asked.flop,
        grayscale=asked.grayscale,
        brightness=asked.brightness,
        contrast=asked.contrast,
        saturation=asked.saturation,
        blur=asked.blur,
        sharpen=asked.sharpen,
        ellipse=asked.ellipse,
        watermark=asked.watermark,
        frame=asked.frame,
        metadata=asked.metadata,
        keep_location=asked.keep_location,
    )


def _snap(transformation: Transformation, size: Size, widths: Sequence[int]) -> Transformation:
    """To the next allowed width, or the largest; the height goes along. Without a size asked for, there is none to
    snap.
    """
    if transformation.width is transformation.height is transformation.percent is None:
        return transformation
    wanted = transformation.width or size.width
    width = widths[min(bisect_left(widths, wanted), len(widths) - 1)]
    height = transformation.height
    if height is not None:
        height = max(1, round(height * width / wanted))
        if height > MAX_SIDE:
            raise _too_large(Size(width, height), 1)
    return msgspec.structs.replace(transformation, width=width, height=height, percent=None)


def _frames(image: Image) -> int:
    return _found(image.pages) if image.format in _PAGED else 1


def _is_animated(asked: RenditionParams, image: Image) -> bool:
    return image.format in _ANIMATED and _found(image.pages) > 1 and asked.frame is None


def _is_transparent(asked: RenditionParams, image: Image) -> bool:
    if asked.background is not None:
        return asked.background[3] < 255
    return bool(image.has_alpha) or asked.ellipse


def _too_large(size: Size, frames: int) -> ServiceError:
    what = f"{size.width} x {size.height} pixels" + (f" in {frames} frames" if frames > 1 else "")
    return ServiceError(
        "rendition-too-large",
        f"The rendition would have {what}; a side has at most {MAX_SIDE}, and all of it {MAX_PIXELS // 10**6} million."
        " Ask for a smaller width, or for one frame of an animation.",
    )


def _found(value: Value | None) -> Value:
    if value is None:
        raise TypeError("a ready image lacks what its probe found")
    return value
