"""JSON Schemas, generated from the classes of responses and the bounds of parameters."""

from __future__ import annotations

from typing import Any

import msgspec

from service.api import responses as representations
from service.api.openapi.parts import Json
from service.ids import IMAGE_ID_PATTERN
from service.images.tag_rules import MAX_TAG_LENGTH, MAX_TAGS

_REFERENCE = "#/components/schemas/{name}"
_VIEWS = [
    representations.ReadyImage,
    representations.ProcessingImage,
    representations.AccountUsage,
    representations.ImagePage,
]

ID: Json = {"type": "string", "pattern": f"^{IMAGE_ID_PATTERN.pattern}$"}
TAG: Json = {
    "type": "string",
    "description": "Normalised to NFC, in which the length is counted. A tag needs a visible character; a blank tag is "
    "ignored.",
    "maxLength": MAX_TAG_LENGTH,
    "pattern": r"^[^,\x00-\x1f\x7f-\x9f\u2028\u2029]*$",
}
TAGS: Json = {"type": "array", "items": TAG, "maxItems": MAX_TAGS}
SOME_TAGS: Json = TAGS | {"minItems": 1, "contains": {"type": "string", "pattern": r"\S"}}
FLAG: Json = {"type": "boolean", "default": False}


def components() -> Json:
    """Returns the schemas that others refer to, by name."""
    _, generated = msgspec.json.schema_components(_VIEWS, ref_template=_REFERENCE)
    return {**generated, "Image": _IMAGE, "Error": _ERROR}


def reference(name: str) -> Json:
    return {"$ref": _REFERENCE.format(name=name)}


def success(response: Json) -> Json:
    """Returns the schema of a successful response with this value."""
    return {
        "type": "object",
        "required": ["success", "response"],
        "properties": {"success": {"const": True}, "response": response},
    }


def failure(codes: list[str]) -> Json:
    """Returns the schema of an error response with one of these codes."""
    code = {"type": "object", "properties": {"code": {"enum": codes}}}
    return {"allOf": [reference("Error"), {"type": "object", "properties": {"error": code}}]}


_IMAGE: Json = {
    "description": "An image: ready, or not yet probed by a worker.",
    "oneOf": [reference("ReadyImage"), reference("ProcessingImage")],
}

_ERROR: Json = {
    "type": "object",
    "description": "The shape of every error. The code is stable; the message is for people.",
    "required": ["success", "error"],
    "properties": {
        "success": {"const": False},
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
        },
    },
}


def reference_to(view: type[Any]) -> Json:
    """Returns a reference to the schema of a class of `representations`."""
    return reference(view.__name__)
