"""The parameters and bodies that operations share."""

from __future__ import annotations

from service.api.openapi import examples, schemas
from service.api.openapi.parts import Body, Json, Parameter
from service.api.openapi.schemas import FLAG, ID, TAGS
from service.api.routes.search import DEFAULT_LIMIT, MAX_LIMIT
from service.http.bodies import MAX_FIELDS
from service.ids import MAX_IDS
from service.media_types import MIME_TYPES

ID_IN_PATH = Parameter("id", "path", "The image's id.", ID, required=True, example="NKrigl4")
IDS_IN_PATH = Parameter(
    "id",
    "path",
    "One id, or several separated by commas. The response is one object, or a list in the same order.",
    {"type": "array", "items": ID, "minItems": 1, "maxItems": MAX_IDS},
    required=True,
    example=["NKrigl4"],
)

IDEMPOTENCY_KEY = Parameter(
    "Idempotency-Key",
    "header",
    "A key that the client chooses for this image. A repeated request within 24 hours creates no second image and "
    "returns the first one. Another file or URL with the same key is refused with 422. A refused request does not use "
    "its key, and deleting the image releases it.",
    {"type": "string", "pattern": "^[!-~]{1,255}$"},
    example="7f3a1c02-upload-17",
)
NEW_TAGS = Parameter("tags", "query", "Comma-separated tags for the new image.", TAGS)
SOME_TAGS = Parameter("tags", "query", "Comma-separated tags.", schemas.SOME_TAGS, required=True, example=examples.TAGS)

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
        "Adds `mini_preview`: a JPEG of at most 500 bytes as base64, to show blurred while the image loads.",
        FLAG,
    ),
    Parameter("with_account", "query", "Adds `account`, as in `/v1/account`.", FLAG),
)

SOURCE_URL = Parameter(
    "url",
    "query",
    "The location of the file: a public http or https URL.",
    {"type": "string", "format": "uri"},
    required=True,
    example=examples.SOURCE_URL,
)

_FORM: Json = {
    "schema": {
        "type": "object",
        "required": ["file"],
        "properties": {"file": {}, "tags": TAGS, **{flag.name: flag.schema for flag in DETAIL}},
        # Other fields are ignored.
        "additionalProperties": {"type": "string"},
        "maxProperties": 1 + MAX_FIELDS,
    },
    "encoding": {"file": {"contentType": "application/octet-stream, image/*"}},
}
_URL_AND_TAGS: Json = {
    "schema": {
        "type": "object",
        "required": ["url"],
        "properties": {"url": SOURCE_URL.schema, "tags": TAGS},
        "additionalProperties": False,
    },
    "example": {"url": examples.SOURCE_URL, "tags": ["car"]},
}
FILE_OR_URL = Body(
    "The bytes of one file, or a form with one file (in a field of any name), or JSON with the URL of a file. Tags may "
    "be in the JSON, in the form or in the query string, but only in one of them.",
    {
        "application/octet-stream": {},
        **{kind: {} for kind in sorted(MIME_TYPES.values())},
        "multipart/form-data": _FORM,
        "application/json": _URL_AND_TAGS,
    },
)

TAGS_IN_BODY = Body(
    "The tags. Without a body, they may be in the query string, as `tags`.",
    {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["tags"],
                "properties": {"tags": schemas.SOME_TAGS},
                "additionalProperties": False,
            },
            "example": {"tags": examples.TAGS},
        }
    },
)

_DATE: Json = {"type": "string", "anyOf": [{"format": "date"}, {"format": "date-time"}]}
FILTERS = (
    Parameter("tags", "query", "Images that have all of these comma-separated tags.", TAGS),
    Parameter("format", "query", "Images of this format.", {"type": "string", "enum": list(MIME_TYPES)}),
    Parameter("sha256", "query", "Images of exactly these bytes.", {"type": "string", "pattern": "^[0-9a-fA-F]{64}$"}),
    Parameter("created_after", "query", "Images created at this time or later; UTC if it has no zone.", _DATE),
    Parameter("created_before", "query", "Images created before this time.", _DATE),
    Parameter(
        "limit",
        "query",
        "The maximum number of images in a page.",
        {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
    ),
    Parameter("cursor", "query", "The `next_cursor` of the previous page, with the same filters.", {"type": "string"}),
)
