"""Every operation of the API."""

from __future__ import annotations

from dataclasses import replace

from service.api.openapi import examples, schemas
from service.api.openapi.inputs import (
    DETAIL,
    FILTERS,
    ID_IN_PATH,
    IDEMPOTENCY_KEY,
    IDS_IN_PATH,
    NEW_TAGS,
    PICTURE_OR_URL,
    SOME_TAGS,
    SOURCE_URL,
    TAGS_IN_BODY,
)
from service.api.openapi.parts import Answer, Json, Operation, Parameter
from service.api.openapi.renditions import DELIVERY
from service.api.representations import FoundImages, ProcessingImage, ReadyImage, ShownAccount

# Errors that come together.
_PICTURE = ("unsupported-image", "damaged-image", "too-many-pixels", "probe-failed", "image-lost")
_STORE = (
    "invalid-parameter",
    "invalid-idempotency-key",
    "idempotency-key-reused",
    "upload-too-large",
    "quota-exceeded",
    "image-deleted",
    "busy",
    "queue-unavailable",
    "storage-unavailable",
    *_PICTURE,
)
_DOWNLOAD = (
    "invalid-url",
    "url-not-allowed",
    "origin-not-found",
    "origin-refused",
    "origin-too-slow",
    "not-an-image",
)
_BODY = ("invalid-body", "unsupported-content-encoding", "upload-too-large", "upload-timeout")

_PROCESSING = {"processing": examples.answer(examples.PROCESSING)}
_LEADS_TO = ("showImage", "showPicture", "addTags", "removeTags", "deleteImages")
_STORED = (
    Answer(
        "The image is stored.",
        schemas.success(schemas.name_of(ReadyImage)),
        {"image": examples.answer(examples.image())},
        headers=("Cache-Control",),
        leads_to=_LEADS_TO,
    ),
    Answer(
        "The image is stored, and no worker has looked at it yet; ask for it again.",
        schemas.success(schemas.name_of(ProcessingImage)),
        _PROCESSING,
        status=202,
        headers=("Cache-Control",),
        leads_to=_LEADS_TO,
    ),
)


def _changed(description: str, tags: list[str]) -> Answer:
    """One image, or a list where several were named."""
    image = schemas.reference("Image")
    return Answer(
        description,
        schemas.success({"oneOf": [image, {"type": "array", "items": image}]}),
        {
            "one": examples.answer(examples.image(tags)),
            "several": examples.answer([examples.image(tags), examples.image(tags) | {"id": "1Zb0Qx4"}]),
        },
        headers=("Cache-Control",),
    )


_CREATE = (
    Operation(
        method="GET",
        path="/v1/images",
        name="createImageFromUrl",
        tag="images",
        summary="Create an image from a URL",
        description="Fetches the picture and stores it. The caller's key and headers never reach its origin.",
        parameters=(SOURCE_URL, NEW_TAGS, *DETAIL, IDEMPOTENCY_KEY),
        answers=_STORED,
        errors=(*_DOWNLOAD, *_STORE),
    ),
    Operation(
        method="POST",
        path="/v1/images",
        name="createImage",
        tag="images",
        summary="Create an image from bytes or from a URL",
        parameters=(NEW_TAGS, *DETAIL, IDEMPOTENCY_KEY),
        body=PICTURE_OR_URL,
        answers=_STORED,
        sample={"tags": "animal,dog", "with_mini_preview": "true"},
        errors=(*_BODY, "empty-body", "unsupported-content-type", *_DOWNLOAD, *_STORE),
    ),
)

_SHOW = Operation(
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
            {"image": examples.answer(examples.image()), **_PROCESSING},
        ),
    ),
    errors=("invalid-id", "invalid-parameter", "image-not-found", *_PICTURE),
    sample={"verbose": "true"},
)

_SEARCH = Operation(
    method="GET",
    path="/v1/images/search",
    name="searchImages",
    tag="images",
    summary="The account's ready images, newest first",
    description="The filters can be combined. No page repeats an image or leaves one out that was there all along.",
    parameters=(*FILTERS, *DETAIL),
    answers=(
        Answer(
            "One page.",
            schemas.success(schemas.name_of(FoundImages)),
            {"page": examples.answer({"images": [examples.image(examples.TAGS)], "next_cursor": None})},
        ),
    ),
    errors=("invalid-parameter",),
    sample={"tags": "animal,dog", "limit": "10"},
)

_DELETE = Operation(
    method="DELETE",
    path="/v1/images/{id}",
    name="deleteImages",
    tag="images",
    summary="Delete one image or several",
    description="All of them, or none: an unknown id fails the call.",
    parameters=(IDS_IN_PATH, *DETAIL),
    answers=(_changed("What was deleted.", []),),
    errors=("invalid-id", "invalid-parameter"),
)

_ADD_TAGS = Operation(
    method="PUT",
    path="/v1/images/{id}/tags",
    name="addTags",
    tag="tags",
    summary="Add tags to one image or several",
    description="Behind those that an image has; at most 20. One too many, or an unknown id, changes nothing.",
    parameters=(IDS_IN_PATH, *DETAIL),
    body=TAGS_IN_BODY,
    answers=(_changed("The images with their tags.", examples.TAGS),),
    errors=("invalid-id", "invalid-parameter", "image-not-found", "too-many-tags", *_BODY),
)

_REMOVE_TAGS = Operation(
    method="DELETE",
    path="/v1/images/{id}/tags",
    name="removeTags",
    tag="tags",
    summary="Remove tags from one image or several",
    description="A tag that an image does not have is no error; an unknown id changes nothing. The tags may also stand "
    "in a JSON body, as for PUT.",
    parameters=(IDS_IN_PATH, SOME_TAGS, *DETAIL),
    answers=(_changed("The images with the tags that are left.", []),),
    errors=("invalid-id", "invalid-parameter", "image-not-found"),
)


def _as_get(operation: Operation, path: str) -> Operation:
    """The same by GET, as the original API has it."""
    return replace(
        operation,
        method="GET",
        path=path,
        name=f"{operation.name}ByGet",
        summary=f"{operation.summary}, by GET",
        parameters=(IDS_IN_PATH, *(() if operation.tag == "images" else (SOME_TAGS,)), *DETAIL),
        body=None,
        errors=tuple(code for code in operation.errors if code not in _BODY),
        description=f"{operation.description} The answer is never cached, and HEAD is a 405.",
    )


_ACCOUNT = Operation(
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
)

_STATE: Json = {"enum": ["ok", "unavailable"]}
_READINESS: Json = {
    "type": "object",
    "required": ["status", "checks"],
    "properties": {
        "status": _STATE,
        "checks": {"type": "object", "additionalProperties": _STATE},
        "reasons": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
_SERVICE = (
    Operation(
        method="GET",
        path="/",
        name="showFront",
        tag="service",
        summary="What this server is, and where this document is",
        description="A page for clients that take `text/html`, as browsers do; JSON for others.",
        answers=(Answer("It.", media_types=("application/json", "text/html"), headers=("Cache-Control", "Vary")),),
        needs_key=False,
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
        summary="Whether an upload would work: database, queue, storage and a worker",
        answers=(
            Answer("They do.", _READINESS, headers=("Cache-Control",)),
            Answer(
                "What is `unavailable` does not; `reasons` says why.",
                _READINESS,
                status=503,
                headers=("Cache-Control", "Retry-After"),
            ),
        ),
        needs_key=False,
    ),
    Operation(
        method="GET",
        path="/metrics",
        name="showMetrics",
        tag="service",
        summary="What Prometheus scrapes",
        answers=(
            Answer(
                "Counters and gauges in Prometheus's text format.",
                {"type": "string"},
                media_types=("text/plain",),
                headers=("Cache-Control",),
            ),
        ),
        errors=("busy",),
        needs_key=False,
    ),
    Operation(
        method="GET",
        path="/docs",
        name="showReference",
        tag="service",
        summary="This reference, as a page",
        answers=(Answer("The page.", media_types=("text/html",), headers=("Cache-Control", "ETag", "Vary")),),
        needs_key=False,
    ),
    Operation(
        method="GET",
        path="/docs/{asset}",
        name="showReferenceAsset",
        tag="service",
        summary="A file of the reference's page",
        parameters=(
            Parameter(
                "asset",
                "path",
                "The file's name.",
                {"type": "string", "pattern": "^[^/]+$"},
                required=True,
                example="reference.js",
            ),
        ),
        answers=(
            Answer(
                "The file.",
                media_types=("text/javascript", "text/css", "text/plain"),
                headers=("Cache-Control", "ETag", "Vary"),
            ),
        ),
        errors=("not-found",),
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

OPERATIONS: tuple[Operation, ...] = (
    *_CREATE,
    _SEARCH,
    _SHOW,
    _DELETE,
    _as_get(_DELETE, "/v1/images/{id}/delete"),
    _ADD_TAGS,
    _as_get(_ADD_TAGS, "/v1/images/{id}/add_tags"),
    _REMOVE_TAGS,
    _as_get(_REMOVE_TAGS, "/v1/images/{id}/remove_tags"),
    _ACCOUNT,
    *DELIVERY,
    *_SERVICE,
)
