"""The parameters and operations of `/i/{id}`: an image as it was uploaded, or a rendition of it."""

from __future__ import annotations

from dataclasses import replace

from service.api.openapi.inputs import ID_IN_PATH
from service.api.openapi.parts import Json, Operation, Parameter, Response
from service.media_types import MIME_TYPES
from service.renditions.formats import FORMATS_BY_EXTENSION
from service.renditions.parameters import PARAMETERS
from service.renditions.parameters import Parameter as RenditionParameter
from service.renditions.transformation import MAX_PIXELS, MAX_SIDE


def _parameter(parameter: RenditionParameter) -> Parameter:
    default: Json = {} if parameter.default is None else {"default": parameter.default}
    return Parameter(parameter.name, "query", parameter.description, parameter.kind.schema | default)


RENDITION = tuple(_parameter(parameter) for parameter in PARAMETERS.values())
SIGNED = (
    Parameter(
        "expires",
        "query",
        "Part of a signed URL: the Unix time from which it is refused.",
        {"type": "integer", "minimum": 0, "maximum": 99_999_999_999},
    ),
    Parameter(
        "signature",
        "query",
        "Part of a signed URL, and its last parameter.",
        {"type": "string", "pattern": "^[A-Za-z0-9_-]{43}$"},
    ),
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
    summary="Get the picture of an image",
    description="Without parameters, returns the file that was uploaded. With parameters, returns a rendition, which "
    f"the first request creates: at most {MAX_SIDE} pixels a side, and {MAX_PIXELS // 10**6} million in all frames "
    "together. A parameter that is unknown, given more than once or in conflict with another is refused with 400. "
    "Conditional requests and a single Range are supported. Unsigned requests for new renditions are rate limited by "
    "the time that they take: a large source, `trim`, sharpening or a large result counts as several.",
    parameters=(ID_IN_PATH, *RENDITION, *SIGNED),
    responses=(
        Response("The picture.", media_types=_MEDIA_TYPES, headers=(*_HEADERS, "Accept-Ranges")),
        Response(
            "The requested range of the picture.",
            status=206,
            media_types=_MEDIA_TYPES,
            headers=(*_HEADERS, "Accept-Ranges", "Content-Range"),
        ),
        Response(
            "The picture is at `Location`, in the object store of the server.",
            status=302,
            media_types=(),
            headers=("Location", "Cache-Control"),
        ),
        Response("The client has the picture already.", status=304, media_types=(), headers=_HEADERS),
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
    summary="Get the picture of an image under a name",
    description=f"{_SHOW.description} The name is for search engines and saved files; its extension, if it is one "
    f"of {', '.join(FORMATS_BY_EXTENSION)}, is the same as `format`.",
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
