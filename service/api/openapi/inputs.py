"""Parameters and bodies, once each, since several operations take them."""

from __future__ import annotations

from service.api.openapi import examples, schemas
from service.api.openapi.parts import Body, Json, Parameter
from service.api.openapi.schemas import FLAG, ID, TAGS
from service.api.routes.search import DEFAULT_LIMIT, MAX_LIMIT
from service.http.multipart import MAX_FIELDS
from service.ids import MAX_IDS
from service.images.probe import MIME_TYPES

ID_IN_PATH = Parameter("id", "path", "The image's id.", ID, required=True, example="NKrigl4")
IDS_IN_PATH = Parameter(
    "id",
    "path",
    "One id, or several with commas between them. One is answered by its object, several by a list in the order asked.",
    {"type": "array", "items": ID, "minItems": 1, "maxItems": MAX_IDS},
    required=True,
    example=["NKrigl4"],
)

IDEMPOTENCY_KEY = Parameter(
    "Idempotency-Key",
    "header",
    "The client's own name for this image: sent again within 24 hours, the request makes no second one and answers the "
    "first. Another picture or URL under the same key is a 422. What is refused leaves its key free, and so does a "
    "delete.",
    {"type": "string", "pattern": "^[!-~]{1,255}$"},
    example="7f3a1c02-upload-17",
)
NEW_TAGS = Parameter("tags", "query", "Comma-separated tags of the new image.", TAGS)
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
PICTURE_OR_URL = Body(
    "The bytes of one picture, or one file in a form (whatever the field is called), or in JSON where the picture is. "
    "Tags may stand in the JSON, in the form or in the query string, not in two of them.",
    {
        "application/octet-stream": {},
        **{kind: {} for kind in sorted(MIME_TYPES.values())},
        "multipart/form-data": _FORM,
        "application/json": _URL_AND_TAGS,
    },
)

TAGS_IN_BODY = Body(
    "The tags. Without a body they may stand in the query string, as `tags`.",
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

_MOMENT: Json = {"type": "string", "anyOf": [{"format": "date"}, {"format": "date-time"}]}
FILTERS = (
    Parameter("tags", "query", "Images that have all of these comma-separated tags.", TAGS),
    Parameter("format", "query", "Images of this format.", {"type": "string", "enum": list(MIME_TYPES)}),
    Parameter("sha256", "query", "Images of exactly these bytes.", {"type": "string", "pattern": "^[0-9a-fA-F]{64}$"}),
    Parameter("created_after", "query", "Images created at this moment or later; in UTC without a zone.", _MOMENT),
    Parameter("created_before", "query", "Images created before this moment.", _MOMENT),
    Parameter(
        "limit",
        "query",
        "How many a page.",
        {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
    ),
    Parameter("cursor", "query", "The `next_cursor` of the page before, with the same filters.", {"type": "string"}),
)
