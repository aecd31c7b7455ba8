"""The operations of the API."""

from __future__ import annotations

from dataclasses import replace

from service.api.openapi import examples, schemas
from service.api.openapi.inputs import (
    DETAIL,
    FILE_OR_URL,
    FILTERS,
    ID_IN_PATH,
    IDEMPOTENCY_KEY,
    IDS_IN_PATH,
    NEW_TAGS,
    SOME_TAGS,
    SOURCE_URL,
    TAGS_IN_BODY,
)
from service.api.openapi.parts import Json, Operation, Parameter, Response
from service.api.openapi.renditions import DELIVERY
from service.api.responses import AccountUsage, ImagePage, ProcessingImage, ReadyImage

# Errors that several operations share.
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

_PROCESSING = {"processing": examples.success(examples.PROCESSING)}
_LINKS = ("showImage", "showPicture", "addTags", "removeTags", "deleteImages")
_STORED = (
    Response(
        "The image is stored.",
        schemas.success(schemas.reference_to(ReadyImage)),
        {"image": examples.success(examples.image())},
        headers=("Cache-Control",),
        links=_LINKS,
    ),
    Response(
        "The image is stored, but no worker has probed it yet; request it again later.",
        schemas.success(schemas.reference_to(ProcessingImage)),
        _PROCESSING,
        status=202,
        headers=("Cache-Control",),
        links=_LINKS,
    ),
)


def _changed(description: str, tags: list[str]) -> Response:
    """Returns a response with one image, or with a list if the path has several ids."""
    image = schemas.reference("Image")
    return Response(
        description,
        schemas.success({"oneOf": [image, {"type": "array", "items": image}]}),
        {
            "one": examples.success(examples.image(tags)),
            "several": examples.success([examples.image(tags), examples.image(tags) | {"id": "1Zb0Qx4"}]),
        },
        headers=("Cache-Control",),
    )


_CREATE = (
    Operation(
        method="GET",
        path="/v1/images",
        name="createImageFromUrl",
        tag="images",
        summary="Fetch an image from a URL",
        description="Fetches the file and stores it. The client's key and headers are never sent to the origin server.",
        parameters=(SOURCE_URL, NEW_TAGS, *DETAIL, IDEMPOTENCY_KEY),
        responses=_STORED,
        errors=(*_DOWNLOAD, *_STORE),
    ),
    Operation(
        method="POST",
        path="/v1/images",
        name="createImage",
        tag="images",
        summary="Upload an image, or fetch it from a URL",
        parameters=(NEW_TAGS, *DETAIL, IDEMPOTENCY_KEY),
        body=FILE_OR_URL,
        responses=_STORED,
        sample={"tags": "animal,dog", "with_mini_preview": "true"},
        errors=(*_BODY, "empty-body", "unsupported-content-type", *_DOWNLOAD, *_STORE),
    ),
)

_SHOW = Operation(
    method="GET",
    path="/v1/images/{id}",
    name="showImage",
    tag="images",
    summary="Show the metadata of an image",
    parameters=(ID_IN_PATH, *DETAIL),
    responses=(
        Response(
            "The image.",
            schemas.success(schemas.reference("Image")),
            {"image": examples.success(examples.image()), **_PROCESSING},
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
    summary="Search the account's images, newest first",
    description="Returns ready images. Filters can be combined. No page repeats an image, or omits one that existed "
    "during the whole search.",
    parameters=(*FILTERS, *DETAIL),
    responses=(
        Response(
            "One page.",
            schemas.success(schemas.reference_to(ImagePage)),
            {"page": examples.success({"images": [examples.image(examples.TAGS)], "next_cursor": None})},
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
    summary="Delete one or several images",
    description="Deletes all of the images or none: with an unknown id, nothing is deleted.",
    parameters=(IDS_IN_PATH, *DETAIL),
    responses=(_changed("The deleted images.", []),),
    errors=("invalid-id", "invalid-parameter"),
)

_ADD_TAGS = Operation(
    method="PUT",
    path="/v1/images/{id}/tags",
    name="addTags",
    tag="tags",
    summary="Add tags to one or several images",
    description="The tags are appended to those of each image, which can have at most 20. With more, or with an "
    "unknown id, nothing is changed.",
    parameters=(IDS_IN_PATH, *DETAIL),
    body=TAGS_IN_BODY,
    responses=(_changed("The images with their tags.", examples.TAGS),),
    errors=("invalid-id", "invalid-parameter", "image-not-found", "too-many-tags", *_BODY),
)

_REMOVE_TAGS = Operation(
    method="DELETE",
    path="/v1/images/{id}/tags",
    name="removeTags",
    tag="tags",
    summary="Remove tags from one or several images",
    description="A tag that an image does not have is ignored; with an unknown id, nothing is changed. The tags may "
    "also be in a JSON body, as for PUT.",
    parameters=(IDS_IN_PATH, SOME_TAGS, *DETAIL),
    responses=(_changed("The images with the remaining tags.", []),),
    errors=("invalid-id", "invalid-parameter", "image-not-found"),
)


def _as_get(operation: Operation, path: str) -> Operation:
    """Returns the same operation with GET, as in the original API."""
    return replace(
        operation,
        method="GET",
        path=path,
        name=f"{operation.name}ByGet",
        summary=f"{operation.summary}, by GET",
        parameters=(IDS_IN_PATH, *(() if operation.tag == "images" else (SOME_TAGS,)), *DETAIL),
        body=None,
        errors=tuple(code for code in operation.errors if code not in _BODY),
        description=f"{operation.description} The response is not cacheable, and HEAD returns 405.",
    )


_ACCOUNT = Operation(
    method="GET",
    path="/v1/account",
    name="showAccount",
    tag="account",
    summary="Show the number of images and the storage usage",
    responses=(
        Response(
            "The account.",
            schemas.success(schemas.reference_to(AccountUsage)),
            {"account": examples.success(examples.ACCOUNT)},
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
        summary="Show the start page",
        description="Returns HTML for clients that accept `text/html`, e.g. browsers, and JSON for others.",
        responses=(
            Response("The page.", media_types=("application/json", "text/html"), headers=("Cache-Control", "Vary")),
        ),
        needs_key=False,
    ),
    Operation(
        method="GET",
        path="/healthz",
        name="isAlive",
        tag="service",
        summary="Check whether the process responds",
        responses=(
            Response(
                "It responds.",
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
        summary="Check whether an upload would succeed",
        responses=(
            Response("Everything is available.", _READINESS, headers=("Cache-Control",)),
            Response(
                "Something is `unavailable`; `reasons` says why.",
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
        summary="Get the metrics for Prometheus",
        responses=(
            Response(
                "Metrics in the text format of Prometheus.",
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
        summary="Show the API reference",
        responses=(Response("The page.", media_types=("text/html",), headers=("Cache-Control", "ETag", "Vary")),),
        needs_key=False,
    ),
    Operation(
        method="GET",
        path="/docs/{asset}",
        name="showReferenceAsset",
        tag="service",
        summary="Get a file of the API reference",
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
        responses=(
            Response(
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
        summary="Get the OpenAPI document",
        responses=(
            Response(
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
