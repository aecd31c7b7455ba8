"""Parameters and bodies, once each, since several operations take them."""

from __future__ import annotations

from dataclasses import replace

from service.api.openapi import examples
from service.api.openapi.parts import Body, Json, Parameter
from service.api.openapi.schemas import FLAG, ID, TAGS
from service.probes import MIME_TYPES

ID_IN_PATH = Parameter("id", "path", "The image's id.", ID, required=True, example="NKrigl4")
IDS_IN_PATH = Parameter(
    "id",
    "path",
    "One id, or several with commas between them. One is answered by its object, several by a list in the order asked.",
    {"type": "array", "items": ID, "minItems": 1, "maxItems": 20},
    required=True,
    example=["NKrigl4"],
)

NEW_TAGS = Parameter("tags", "query", "Comma-separated tags of the new image.", TAGS)
TAGS_TO_ADD = Parameter(
    "tags",
    "query",
    "Comma-separated tags. An image has at most 20; one too many changes nothing.",
    TAGS | {"minItems": 1},
    required=True,
    example=examples.TAGS,
)
TAGS_TO_REMOVE = replace(
    TAGS_TO_ADD, description="Comma-separated tags. Removing a tag that an image does not have is no error."
)

DETAIL = (
    Parameter("with_exif", "query", "Adds `exif`.", FLAG),
    Parameter(
        "verbose",
        "query",
        "Adds `format`, `mime`, `created`, `orientation`, `pages`, `has_alpha`, `sha256` and `url`.",
        FLAG,
    ),
    Parameter(
        "with_mini_preview",
        "query",
        "Adds `mini_preview`: a JPEG of at most 500 bytes as base64, to blur while the picture loads.",
        FLAG,
    ),
    Parameter("with_account", "query", "Adds `account`, as `/v1/account` answers it.", FLAG),
)

SOURCE_URL = Parameter(
    "url",
    "query",
    "Where the picture is: an http or https address that anybody can reach.",
    {"type": "string", "format": "uri"},
    required=True,
    example=examples.SOURCE_URL,
)

_FORM: Json = {
    "schema": {"type": "object", "required": ["file"], "properties": {"file": {}}, "additionalProperties": False},
    "encoding": {"file": {"contentType": "application/octet-stream, image/*"}},
}
_URL_AND_TAGS: Json = {
    "schema": {
        "type": "object",
        "required": ["url"],
        "properties": {"url": SOURCE_URL.schema, "tags": TAGS},
    },
    "example": {"url": examples.SOURCE_URL, "tags": ["car"]},
}
PICTURE_OR_URL = Body(
    "The bytes of one picture, or one file in a form (whatever the field is called), or in JSON where the picture is.",
    {
        "application/octet-stream": {},
        **{kind: {} for kind in sorted(MIME_TYPES.values())},
        "multipart/form-data": _FORM,
    },
)

_TAGS_ALONE: Json = {
    "schema": {"type": "object", "required": ["tags"], "properties": {"tags": TAGS | {"minItems": 1}}},
    "example": {"tags": examples.TAGS},
}
TAGS_IN_BODY = Body(
    "The tags, where they are not in the query string.", {"application/json": _TAGS_ALONE}, required=False
)
