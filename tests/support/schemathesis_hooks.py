"""Makes schemathesis send valid values where the schema cannot describe them, e.g. pictures and their URLs."""

from __future__ import annotations

import itertools
import os
import re
from typing import Any

import schemathesis
from hypothesis import strategies as st

from service.api.openapi.inputs import DETAIL, IDEMPOTENCY_KEY
from service.api.openapi.renditions import RENDITION, SIGNED
from service.api.openapi.schemas import FLAG, ID, TAG
from service.errors import ServiceError
from service.images.tag_rules import clean_tags
from tests.support.samples import jpeg

_PICTURES = st.sampled_from([jpeg(64, 48), jpeg(30, 40)])

_PICTURE_URL = os.environ["PICTURE_URL"]
_IMAGE_ID = os.environ["IMAGE_ID"]
_PUBLIC_URL = "https://img.example.com/"
_FLAGS = {parameter.name for parameter in (*DETAIL, *RENDITION) if parameter.schema == FLAG} | {"trim"}
_ID = re.compile(ID["pattern"])
_TAG = re.compile(TAG["pattern"])
_GENERATED_PATTERNS = {
    parameter.name: re.compile(parameter.schema.get("pattern", "[0-9]{1,11}"))
    for parameter in (*RENDITION, *SIGNED)
    if parameter.name in {"preset", "expires", "signature"}
}
_KEY = re.compile(IDEMPOTENCY_KEY.schema["pattern"])
_numbers = itertools.count()

# The service ignores the type and detects the format from the bytes.
for kind in ("application/octet-stream", "image/*", *os.environ["PICTURE_TYPES"].split()):
    schemathesis.openapi.media_type(kind, _PICTURES)
schemathesis.openapi.format("uri", st.just(_PICTURE_URL))


def _is_accepted(tag: Any) -> bool:
    """Returns False for a tag that matches the pattern but is refused: not visible, or too long after normalisation."""
    if not isinstance(tag, str) or _TAG.fullmatch(tag) is None:
        return True
    try:
        return len(clean_tags([tag])) <= 1
    except ServiceError:
        return False


@schemathesis.hook
def before_call(_: schemathesis.HookContext, case: schemathesis.Case[Any], __: dict[str, Any]) -> None:
    """Replaces values that are a 400 for reasons which the schema cannot describe, and URLs that are not reachable."""
    query = case.query or {}
    query.pop("cursor", None)  # only the service can make a valid one
    for name in _FLAGS & query.keys():
        if query[name] == "":
            query[name] = "perhaps"  # an empty flag means true (`allowEmptyValue`), which schemathesis does not support
    if isinstance(case.body, dict) and "tags" in case.body:
        query.pop("tags", None)  # only allowed in one of both
    if case.headers and _KEY.fullmatch(str(case.headers.get("Idempotency-Key", ""))):
        case.headers["Idempotency-Key"] = f"key-{next(_numbers)}"  # a key must not be used for two pictures
    if case.operation.path.startswith("/i/") and _ID.fullmatch(str(case.path_parameters.get("id"))):
        case.path_parameters["id"] = _IMAGE_ID  # almost no other id exists
        for name, pattern in _GENERATED_PATTERNS.items():  # an unknown value would hide all other parameters
            if pattern.fullmatch(str(query.get(name))):
                del query[name]
        if "watermark" in query and _ID.fullmatch(str(query["watermark"])):
            query["watermark"] = _IMAGE_ID
    for sent in (query, case.body):
        if isinstance(sent, dict) and isinstance(tags := sent.get("tags"), list):
            sent["tags"] = [tag for tag in tags if _is_accepted(tag)] or ["a"]
        elif isinstance(sent, dict) and isinstance(tags, str):  # already joined
            sent["tags"] = ",".join(tag for tag in tags.split(",") if _is_accepted(tag)) or "a"
        # A URL from a response, under the public address, which is not served here.
        if isinstance(sent, dict) and str(sent.get("url")).startswith(_PUBLIC_URL):
            sent["url"] = _PICTURE_URL
