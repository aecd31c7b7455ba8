"""Every operation of the API."""

from __future__ import annotations

from service.api.openapi import examples, schemas
from service.api.openapi.inputs import DETAIL, ID_IN_PATH, NEW_TAGS, PICTURE_OR_URL
from service.api.openapi.parts import Answer, Json, Operation
from service.api.representations import ProcessingImage, ReadyImage, ShownAccount

_READY = schemas.success(schemas.name_of(ReadyImage))
_IMAGE_EXAMPLES = {"image": examples.answer(examples.image())}

# Errors that come together.
_PICTURE = ("unsupported-image", "damaged-image", "too-many-pixels", "probe-failed", "image-lost")
_STORING = (
    "invalid-parameter",
    "upload-too-large",
    "quota-exceeded",
    "image-deleted",
    "busy",
    "queue-unavailable",
    "storage-unavailable",
    *_PICTURE,
)

# What may be done with an image once it is there.
_LEADS_TO = ("showImage",)

_STORED = (
    Answer("The image is stored.", _READY, _IMAGE_EXAMPLES, leads_to=_LEADS_TO),
    Answer(
        "The image is stored, and no worker has looked at it yet; ask for it again.",
        schemas.success(schemas.name_of(ProcessingImage)),
        {"processing": examples.answer(examples.PROCESSING)},
        status=202,
        leads_to=_LEADS_TO,
    ),
)

_STATE: Json = {"enum": ["ok", "unavailable"]}
_READINESS: Json = {
    "type": "object",
    "required": ["status", "checks"],
    "properties": {
        "status": _STATE,
        "checks": {"type": "object", "additionalProperties": _STATE},
    },
}

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        method="POST",
        path="/v1/images",
        name="createImage",
        tag="images",
        summary="Create an image from bytes or from a URL",
        parameters=(NEW_TAGS, *DETAIL),
        body=PICTURE_OR_URL,
        answers=_STORED,
        errors=("invalid-body", "empty-body", "upload-timeout", "unsupported-content-type", *_STORING),
    ),
    Operation(
        method="GET",
        path="/v1/images/{id}",
        name="showImage",
        tag="images",
        summary="The metadata of one image",
        parameters=(ID_IN_PATH, *DETAIL),
        answers=(
            Answer(
                "The image.",
                schemas.success(schemas.reference("Image")),
                _IMAGE_EXAMPLES | {"processing": examples.answer(examples.PROCESSING)},
            ),
        ),
        errors=("invalid-id", "invalid-parameter", "image-not-found", *_PICTURE),
    ),
    Operation(
        method="GET",
        path="/v1/account",
        name="showAccount",
        tag="account",
        summary="How many images are stored, and how much space is left",
        answers=(
            Answer(
                "The account.",
                schemas.success(schemas.name_of(ShownAccount)),
                {"account": examples.answer(examples.ACCOUNT)},
            ),
        ),
    ),
    Operation(
        method="GET",
        path="/healthz",
        name="isAlive",
        tag="service",
        summary="Whether this process answers",
        answers=(
            Answer(
                "It does.",
                {"type": "object", "required": ["status"], "properties": {"status": {"const": "ok"}}},
                headers=("Cache-Control",),
            ),
        ),
        needs_key=False,
    ),
    Operation(
        method="GET",
        path="/readyz",
        name="isReady",
        tag="service",
        summary="Whether database, queue, storage and at least one worker work",
        answers=(
            Answer("They do.", _READINESS, headers=("Cache-Control",)),
            Answer("What is `unavailable` does not.", _READINESS, status=503, headers=("Cache-Control", "Retry-After")),
        ),
        needs_key=False,
    ),
    Operation(
        method="GET",
        path="/openapi.json",
        name="showOpenapi",
        tag="service",
        summary="This document",
        answers=(
            Answer(
                "An OpenAPI 3.1 document.",
                {"type": "object", "required": ["openapi", "info", "paths"]},
                headers=("Cache-Control", "ETag"),
            ),
        ),
        needs_key=False,
    ),
)
