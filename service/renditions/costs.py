"""Estimates the cost of a rendition: the CPU seconds that a decoder takes to render it.

The factors were measured by `./run bench prices`, in milliseconds per million pixels. They need not be exact, because
the measured seconds replace the estimate afterwards. They keep a rush of expensive renditions from being admitted as
cheap ones.
"""

from __future__ import annotations

from service.images.models import Image
from service.renditions.geometry import Geometry
from service.renditions.transformation import Transformation

# The mean of what browsers request: photographs of 3 and 12 million pixels as JPEG, WebP and AVIF, 320 and 640 wide.
TOKEN_S = 0.05
# Opening the file, and the round trip to the decoder.
_BASE_MS = 3
_DECODE_MS = {"jpeg": 4, "png": 12, "webp": 10, "gif": 10, "tiff": 12, "avif": 25, "heic": 30, "svg": 0}
# A JPEG that becomes smaller is decoded at a half, a quarter or an eighth of its size.
_SHRUNK_JPEG_MS = 3
# Both convert the colours of the whole picture before they analyse it.
_TRIM_MS, _SMART_CROP_MS = 14, 5
_DRAW_MS, _DRAW_MS_PER_MB = 30, 1000
_ENCODE_MS = {"jpeg": 12, "png": 35, "webp": 40, "avif": 55, "gif": 370}
_ANIMATION_MS = {"webp": 120, "gif": 400}
# Small AVIFs are encoded with more effort.
_SMALL_AVIF_MS, _MAX_SMALL_AVIF_MS = 500, 40
_ENLARGE_MS = 30
_COLOURS_MS, _BLUR_MS, _WIDE_BLUR_MS, _SHARPEN_MS, _ELLIPSE_MS = 10, 5, 40, 100, 20
_WIDE_BLUR = 8
_WATERMARK_MS = 20


def count_tokens(seconds: float) -> float:
    """Returns how many tokens of the rate limits a rendition of this duration costs: at least 1."""
    return max(1.0, seconds / TOKEN_S)


def estimate_rendition_s(
    image: Image, transformation: Transformation, plan: Geometry, *, frames: int, watermark: Image | None = None
) -> float:
    """Returns an estimate in CPU seconds. `plan` is for the picture before it is trimmed; `frames` are the result's."""
    scaled = plan.scaled.width * plan.scaled.height
    pixels = max(plan.size.width * plan.size.height, scaled if plan.placed_at is None else 0)
    megapixels = pixels * frames / 1e6
    milliseconds = _BASE_MS + _decode_ms(image, transformation, plan, frames)
    milliseconds += _steps_ms(transformation, megapixels) + _encode_ms(transformation, megapixels, frames)
    if scaled > _pixels(image) and image.format != "svg":
        milliseconds += megapixels * _ENLARGE_MS
    if watermark is not None:
        milliseconds += _pixels(watermark) / 1e6 * _DECODE_MS[watermark.format or "svg"] + megapixels * _WATERMARK_MS
    return milliseconds / 1000


def estimate_copy_s(image: Image) -> float:
    """Returns the estimate for a copy of the file without its location: copied at 200 MB a second, never decoded."""
    return _BASE_MS / 1000 + image.size / 200e6


def _decode_ms(image: Image, transformation: Transformation, plan: Geometry, frames: int) -> float:
    """For decoding all frames up to the last one that is needed, and for searching the picture."""
    form = image.format or "svg"
    if form == "svg":
        return plan.scaled.width * plan.scaled.height / 1e6 * _DRAW_MS + image.size / 1e6 * _DRAW_MS_PER_MB
    factor = _DECODE_MS[form]
    is_full_size = transformation.trim is not None or transformation.crop is not None
    if form == "jpeg" and not is_full_size and 2 * plan.scaled.width <= (image.width or 0):
        factor = _SHRUNK_JPEG_MS
    factor *= max(frames, transformation.frame or 1) if form in {"gif", "webp"} else 1
    if transformation.trim is not None:
        factor += _TRIM_MS
    if transformation.crop is not None and transformation.gravity == "smart":
        factor += _SMART_CROP_MS
    return _pixels(image) / 1e6 * factor


def _steps_ms(transformation: Transformation, megapixels: float) -> float:
    """For the steps between the resize and the watermark."""
    factor = 0
    colours = (transformation.brightness, transformation.contrast, transformation.saturation)
    if transformation.grayscale or colours != (1, 1, 1):
        factor += _COLOURS_MS
    if transformation.blur:
        factor += _BLUR_MS if transformation.blur <= _WIDE_BLUR else _WIDE_BLUR_MS
    if transformation.sharpen:
        factor += _SHARPEN_MS
    if transformation.ellipse:
        factor += _ELLIPSE_MS
    return megapixels * factor


def _encode_ms(transformation: Transformation, megapixels: float, frames: int) -> float:
    factor = _ENCODE_MS[transformation.format]
    if frames > 1:
        return megapixels * _ANIMATION_MS.get(transformation.format, factor)
    small_avif_ms = min(_MAX_SMALL_AVIF_MS, megapixels * _SMALL_AVIF_MS) if transformation.format == "avif" else 0
    return megapixels * factor + small_avif_ms


def _pixels(image: Image) -> int:
    return (image.width or 0) * (image.height or 0)
