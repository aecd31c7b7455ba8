"""JSON Schemas, made from the classes that answers are encoded from and the limits that parameters are held to."""

from __future__ import annotations

from typing import Any

import msgspec

from service.api import representations
from service.api.openapi.parts import Json
from service.ids import IMAGE_ID_PATTERN
from service.images.tag_rules import MAX_TAG_LENGTH, MAX_TAGS

_REFERENCE = "#/components/schemas/{name}"
_SHOWN = [
    representations.ReadyImage,
    representations.ProcessingImage,
    representations.AccountUsage,
    representations.ImagePage,
]

ID: Json = {"type": "string", "pattern": f"^{IMAGE_ID_PATTERN.pattern}$"}
TAG: Json = {
    "type": "string",
    "description": "Normalised to NFC, which the length counts. A tag needs a visible character; spaces alone are left "
    "out.",
    "maxLength": MAX_TAG_LENGTH,
    "pattern": r"^[^,\x00-\x1f\x7f-\x9f\u2028\u2029]*$",
}
TAGS: Json = {"type": "array", "items": TAG, "maxItems": MAX_TAGS}
SOME_TAGS: Json = TAGS | {"minItems": 1, "contains": {"type": "string", "pattern": r"\S"}}
FLAG: Json = {"type": "boolean", "default": False}


def components() -> Json:
    """Every schema that others refer to, by name."""
    _, made = msgspec.json.schema_components(_SHOWN, ref_template=_REFERENCE)
    return {**made, "Image": _IMAGE, "Error": _ERROR}


def reference(name: str) -> Json:
    return {"$ref": _REFERENCE.format(name=name)}


def success(response: Json) -> Json:
    """The envelope around what was asked for."""
    return {
        "type": "object",
        "required": ["success", "response"],
        "properties": {"success": {"const": True}, "response": response},
    }


def failure(codes: list[str]) -> Json:
    """The error envelope with one of these codes."""
    code = {"type": "object", "properties": {"code": {"enum": codes}}}
    return {"allOf": [reference("Error"), {"type": "object", "properties": {"error": code}}]}


_IMAGE: Json = {
    "description": "An image: ready, or still waiting for a worker to look at it.",
    "oneOf": [reference("ReadyImage"), reference("ProcessingImage")],
}

_ERROR: Json = {
    "type": "object",
    "description": "Every error has this shape. The code is stable; the message is for people.",
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


def name_of(shown: type[Any]) -> Json:
    """Refers to the schema of a class of `representations`."""
    return reference(shown.__name__)
