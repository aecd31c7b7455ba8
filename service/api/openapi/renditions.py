"""The parameters and operations of delivery: an image as it is, or as a rendition."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

from service.accounts.presets import PRESET_NAME
from service.api.openapi.inputs import ID_IN_PATH
from service.api.openapi.parts import Answer, Json, Operation, Parameter
from service.api.openapi.schemas import FLAG, ID
from service.images.probe import MIME_TYPES
from service.renditions.parameters import FORMATS_BY_EXTENSION, Metadata
from service.renditions.transformation import MAX_PIXELS, MAX_SIDE, Direction, Fit

_DIRECTIONS = [*get_args(Direction), "center"]
_DECIMAL = r"[0-9]{1,6}(\.[0-9]{1,6})?"
_SIDE: Json = {"type": "integer", "minimum": 1, "maximum": MAX_SIDE}
_GRAVITY: Json = {
    "type": "string",
    "anyOf": [{"enum": [*_DIRECTIONS, "smart"]}, {"pattern": f"^{_DECIMAL},{_DECIMAL}$"}],
}
_COLOUR: Json = {
    "type": "string",
    "anyOf": [
        {"enum": ["transparent", "white", "black"]},
        {"pattern": "^#?([0-9A-Fa-f]{3,4}|[0-9A-Fa-f]{6}|[0-9A-Fa-f]{8})$"},
    ],
}


def _words(*words: str, default: str | None = None) -> Json:
    return {"type": "string", "enum": list(words)} | ({} if default is None else {"default": default})


def _number(least: float, most: float, default: float | None = None, *, kind: str = "number") -> Json:
    of_default = {} if default is None else {"default": default}
    return {"type": kind, "minimum": least, "maximum": most} | of_default


def _query(name: str, schema: Json, description: str) -> Parameter:
    return Parameter(name, "query", description, schema)


RENDITION = (
    _query("width", _SIDE, "Pixels across; with it alone the height follows."),
    _query("height", _SIDE, "Pixels down; with it alone the width follows."),
    _query(
        "size",
        {"type": "string", "pattern": f"^([0-9]{{1,5}}x[0-9]{{1,5}}|{_DECIMAL}%)$"},
        "Width and height like `300x200`, or a percentage of the picture like `50%`.",
    ),
    _query("dpr", _number(0.1, 8, 1), "Multiplies `width`, `height` and `blur`."),
    _query("fit", _words(*get_args(Fit), default="contain"), "How the picture gets into `width` and `height`."),
    _query("enlarge", FLAG, "Lets the result have more pixels than the picture."),
    _query(
        "crop",
        {"type": "string", "pattern": "^[0-9]{1,5}x[0-9]{1,5}$"},
        "Cuts so many of the picture's pixels out, around `gravity`, before the resize.",
    ),
    _query(
        "gravity",
        _GRAVITY,
        "What is kept where something is cut off, or where a padded picture lies: a direction, what the picture "
        "decides, or a point in parts of width and height.",
    ),
    _query("background", _COLOUR, "Colour below what is transparent, around and behind the picture."),
    _query(
        "trim",
        {"anyOf": [{"type": "boolean"}, _number(0, 255)]},
        "Cuts off edges of one colour; the number is how far a colour may be from the upper left corner's.",
    ),
    _query("rotate", {"type": "integer", "enum": [0, 90, 180, 270], "default": 0}, "Degrees, clockwise."),
    _query("flip", FLAG, "Upside down, as in a mirror below."),
    _query("flop", FLAG, "Exchanges left and right."),
    _query("grayscale", FLAG, "Takes the colours out."),
    _query("brightness", _number(0, 10, 1), "Multiplies the light."),
    _query("contrast", _number(0, 10, 1), "Multiplies the distance from middle grey."),
    _query("saturation", _number(0, 10, 1), "Multiplies the strength of colours."),
    _query("blur", _number(0, 100, 0), "Standard deviation in pixels."),
    _query("sharpen", _number(0, 10, 0), "Standard deviation of what is sharpened, in pixels."),
    _query("ellipse", FLAG, "Cuts the largest ellipse out."),
    _query("watermark", ID, "Another image of the account, which is laid over the result."),
    _query("watermark-position", _words(*_DIRECTIONS, default="southeast"), "Where it lies."),
    _query("watermark-opacity", _number(0, 1, 1), "How opaque it is."),
    _query("watermark-width", _number(0.01, 1, 0.25), "Its width as a part of the result's."),
    _query("frame", _number(1, 10_000, kind="integer"), "One frame of an animation, or page of a TIFF."),
    _query(
        "format",
        _words("auto", *FORMATS_BY_EXTENSION, default="auto"),
        "`auto` is the best of AVIF and WebP that the header Accept names, else one like the image's own.",
    ),
    _query("quality", _number(1, 100, kind="integer"), "On the encoder's own scale."),
    _query("metadata", _words(*get_args(Metadata), default="none"), "Which EXIF tags the result keeps."),
    _query("keep-location", FLAG, "With `metadata=keep`, also where the picture was taken."),
    _query("preset", {"type": "string", "pattern": f"^{PRESET_NAME.pattern}$"}, "Parameters that the account named."),
)
SIGNED = (
    _query("expires", _number(0, 99_999_999_999, kind="integer"), "Of a signed URL: the Unix time at which it ends."),
    _query("signature", {"type": "string", "pattern": "^[A-Za-z0-9_-]{43}$"}, "Of a signed URL: its last parameter."),
)

_HEADERS = (
    "Cache-Control",
    "ETag",
    "Last-Modified",
    "Vary",
    "Surrogate-Key",
    "Cache-Tag",
    "Content-Disposition",
)
_MEDIA_TYPES = tuple(sorted(MIME_TYPES.values()))

_SHOW = Operation(
    method="GET",
    path="/i/{id}",
    name="showPicture",
    tag="delivery",
    summary="An image as pages embed it",
    description="Without parameters it is the file that was sent. With any it is a rendition, made when it is first "
    f"asked for: at most {MAX_SIDE} pixels a side, and {MAX_PIXELS // 10**6} million in all frames together. "
    "A parameter that is unknown, there twice or in conflict with another is a 400. Conditional requests and one Range "
    "are understood. Unsigned requests for new renditions are limited, by the time that these take: a large source, "
    "`trim`, sharpening or a large result counts as several.",
    parameters=(ID_IN_PATH, *RENDITION, *SIGNED),
    answers=(
        Answer("The picture.", media_types=_MEDIA_TYPES, headers=(*_HEADERS, "Accept-Ranges")),
        Answer(
            "The part of it that Range names.",
            status=206,
            media_types=_MEDIA_TYPES,
            headers=(*_HEADERS, "Accept-Ranges", "Content-Range"),
        ),
        Answer("The client has it already.", status=304, media_types=(), headers=_HEADERS),
    ),
    errors=(
        "invalid-id",
        "invalid-parameter",
        "rendition-too-large",
        "account-suspended",
        "signature-required",
        "signature-invalid",
        "signature-expired",
        "image-not-found",
        "image-processing",
        "image-lost",
        "image-damaged",
        "unsupported-image",
        "damaged-image",
        "range-not-satisfiable",
        "too-many-pixels",
        "probe-failed",
        "rendition-failed",
        "too-many-renditions",
        "too-many-misses",
        "rendition-not-ready",
        "busy",
        "database-unavailable",
        "storage-unavailable",
    ),
    needs_key=False,
    sample={"width": "640", "format": "jpeg"},
)
_SHOW_NAMED = replace(
    _SHOW,
    path="/i/{id}/{name}",
    name="showNamedPicture",
    summary="An image as pages embed it, with a name",
    description=f"{_SHOW.description} The name is for search engines and for who saves the file; its extension, if it "
    f"is one of {', '.join(FORMATS_BY_EXTENSION)}, is the same as `format`.",
    parameters=(
        ID_IN_PATH,
        Parameter(
            "name",
            "path",
            "Any text without a slash.",
            {"type": "string", "minLength": 1, "pattern": "^[^/]+$"},
            required=True,
            example="red-car.jpg",
        ),
        *RENDITION,
        *SIGNED,
    ),
    sample={"width": "640"},
)

DELIVERY = (_SHOW, _SHOW_NAMED)
