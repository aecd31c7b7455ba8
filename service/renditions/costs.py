"""What a rendition costs: an estimate before it is made, of the CPU seconds that a child process will take for it.

The factors were measured by `./run bench prices`, in milliseconds a million pixels. They need not be exact, since the
seconds that it took settle the price: they keep a rush of expensive renditions from being admitted as cheap ones.
"""

from __future__ import annotations

from service.images.models import Image
from service.renditions.geometry import Geometry
from service.renditions.transformation import Transformation

# The mean of what browsers ask for: photographs of 3 and 12 million pixels as JPEG, WebP and AVIF, 320 and 640 wide.
TOKEN_S = 0.05
# Opening, and the way to the child and back.
_BASE_MS = 3
_DECODE_MS = {"jpeg": 4, "png": 12, "webp": 10, "gif": 10, "tiff": 12, "avif": 25, "heic": 30, "svg": 0}
# A JPEG that is made smaller is decoded at a half, a quarter or an eighth of its size.
_SHRUNK_JPEG_MS = 3
# Colours are converted for the whole picture, then it is searched for edges, or for what draws attention.
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
    """The price of a rendition that takes so long; at least 1."""
    return max(1.0, seconds / TOKEN_S)


def estimate_rendition_s(
    image: Image, transformation: Transformation, plan: Geometry, *, frames: int, watermark: Image | None = None
) -> float:
    """`plan` is for the picture before it is trimmed; `frames` are those of the result."""
    scaled = plan.scaled.width * plan.scaled.height
    result = max(plan.size.width * plan.size.height, scaled if plan.placed_at is None else 0) * frames / 1e6
    milliseconds = _BASE_MS + _source_ms(image, transformation, plan, frames)
    milliseconds += result * _finish_ms(transformation) + _encode_ms(transformation, result, frames)
    if scaled > _pixels(image) and image.format != "svg":
        milliseconds += result * _ENLARGE_MS
    if watermark is not None:
        milliseconds += _pixels(watermark) / 1e6 * _DECODE_MS[watermark.format or "svg"] + result * _WATERMARK_MS
    return milliseconds / 1000


def estimate_copy_s(image: Image) -> float:
    """Of a copy without the location: no pixel is decoded, and the file is copied at 200 MB a second."""
    return _BASE_MS / 1000 + image.size / 200e6


def _source_ms(image: Image, transformation: Transformation, plan: Geometry, frames: int) -> float:
    """Decoding: all frames up to the last that is needed."""
    form, is_smart_crop = image.format or "svg", transformation.crop is not None and transformation.gravity == "smart"
    if form == "svg":
        return plan.scaled.width * plan.scaled.height / 1e6 * _DRAW_MS + image.size / 1e6 * _DRAW_MS_PER_MB
    rate = _DECODE_MS[form]
    is_whole = transformation.trim is not None or transformation.crop is not None
    if form == "jpeg" and not is_whole and 2 * plan.scaled.width <= (image.width or 0):
        rate = _SHRUNK_JPEG_MS
    frames = max(frames, transformation.frame or 1) if form in {"gif", "webp"} else 1
    searched = (_TRIM_MS if transformation.trim is not None else 0) + (_SMART_CROP_MS if is_smart_crop else 0)
    return _pixels(image) / 1e6 * (frames * rate + searched)


def _finish_ms(wanted: Transformation) -> float:
    """What is done to each pixel of the result."""
    milliseconds = 0
    if wanted.grayscale or (wanted.brightness, wanted.contrast, wanted.saturation) != (1, 1, 1):
        milliseconds += _COLOURS_MS
    if wanted.blur:
        milliseconds += _BLUR_MS if wanted.blur <= _WIDE_BLUR else _WIDE_BLUR_MS
    if wanted.sharpen:
        milliseconds += _SHARPEN_MS
    return milliseconds + (_ELLIPSE_MS if wanted.ellipse else 0)


def _encode_ms(wanted: Transformation, result: float, frames: int) -> float:
    """`result` is in millions of pixels."""
    if frames > 1:
        return result * _ANIMATION_MS.get(wanted.format, _ENCODE_MS[wanted.format])
    milliseconds = result * _ENCODE_MS[wanted.format]
    return milliseconds + min(_MAX_SMALL_AVIF_MS, result * _SMALL_AVIF_MS) * (wanted.format == "avif")


def _pixels(image: Image) -> int:
    return (image.width or 0) * (image.height or 0)
