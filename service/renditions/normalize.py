"""Turns the parameters of a request and its image into one normalized rendition."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import msgspec

from service.errors import ServiceError
from service.images.models import Image
from service.renditions import geometry
from service.renditions.formats import OUTPUT_FORMATS, choose_format
from service.renditions.geometry import Geometry, Size
from service.renditions.transformation import MAX_PIXELS, MAX_SIDE, Format, RenditionParams, Transformation

Value = TypeVar("Value")

# Formats whose frames or pages libvips reads.
_ANIMATED = frozenset({"gif", "webp"})
_PAGED = _ANIMATED | {"tiff"}


class RenditionPlan(NamedTuple):
    """`geometry` is for the picture before it is trimmed; `frames` are those of the result."""

    transformation: Transformation
    geometry: Geometry
    frames: int


def normalize(
    params: RenditionParams, image: Image, *, accepted: tuple[Format, ...], widths: Sequence[int]
) -> RenditionPlan:
    """Returns the rendition of `image` that `params` describe.

    `accepted` are the negotiated formats that the client accepts. `widths` are the allowed widths in ascending order;
    if empty, every width is allowed. Raises `invalid-parameter` and `rendition-too-large`.
    """
    _check_frame(params, image)
    transformation = _fill_defaults(params, image, accepted)
    source = geometry.size_after_rotation(_require(image.width), _require(image.height), transformation)
    try:
        plan = geometry.plan(*source, transformation)
        if widths:
            transformation = _snap(transformation, plan.size, widths)
            plan = geometry.plan(*source, transformation)
    except geometry.TooLarge as error:
        raise _too_large(error.size, 1) from error
    can_animate = OUTPUT_FORMATS[transformation.format].can_animate
    frames = _count_frames(image) if _is_animated(params, image) and can_animate else 1
    if frames * plan.size.width * plan.size.height > MAX_PIXELS:
        raise _too_large(plan.size, frames)
    return RenditionPlan(transformation, plan, frames)


def _check_frame(params: RenditionParams, image: Image) -> None:
    count = _count_frames(image)
    if params.frame is not None and params.frame > count:
        frames = "one frame" if count == 1 else f"{count} frames"
        raise ServiceError("invalid-parameter", f"frame {params.frame} does not exist: the image has {frames}.")


def _fill_defaults(params: RenditionParams, image: Image, accepted: tuple[Format, ...]) -> Transformation:
    """Fills in what the parameters leave open, and writes equivalent parameters in one way."""
    form = params.format or choose_format(
        _require(image.format),
        accepted,
        transparent=_is_transparent(params, image),
        animated=_is_animated(params, image),
    )
    output = OUTPUT_FORMATS[form]
    has_default = params.quality is None or output.fixed_quality
    decisions = {
        "format": form,
        "quality": output.default_quality if has_default else params.quality,
        # Without `enlarge` they are the same, and scale-down excludes `enlarge`.
        "fit": "contain" if params.fit == "scale-down" else params.fit,
    }
    return Transformation(**msgspec.structs.asdict(params) | decisions)


def _snap(transformation: Transformation, size: Size, widths: Sequence[int]) -> Transformation:
    """Returns it with the next larger allowed width, or the largest one, and the height in proportion.

    A transformation without any size stays as it is.
    """
    if transformation.width is transformation.height is transformation.percent is None:
        return transformation
    requested = transformation.width or size.width
    width = widths[min(bisect_left(widths, requested), len(widths) - 1)]
    height = transformation.height
    if height is not None:
        height = max(1, round(height * width / requested))
        if height > MAX_SIDE:
            raise _too_large(Size(width, height), 1)
    return msgspec.structs.replace(transformation, width=width, height=height, percent=None)


def _count_frames(image: Image) -> int:
    """Returns the frames of an animation, or the pages of a TIFF."""
    return _require(image.pages) if image.format in _PAGED else 1


def _is_animated(params: RenditionParams, image: Image) -> bool:
    return image.format in _ANIMATED and _require(image.pages) > 1 and params.frame is None


def _is_transparent(params: RenditionParams, image: Image) -> bool:
    if params.background is not None:
        return params.background[3] < 255
    return bool(image.has_alpha) or params.ellipse


def _too_large(size: Size, frames: int) -> ServiceError:
    pixels = f"{size.width} x {size.height} pixels" + (f" in {frames} frames" if frames > 1 else "")
    return ServiceError(
        "rendition-too-large",
        f"The rendition would have {pixels}; the maximum is {MAX_SIDE} pixels a side, and {MAX_PIXELS // 10**6} million"
        " in all frames together. Request a smaller width, or one frame of an animation.",
    )


def _require(value: Value | None) -> Value:
    if value is None:
        raise TypeError("a ready image lacks a value of its probe")
    return value
