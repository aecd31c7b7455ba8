"""What schemathesis sends where a schema cannot say what works: a picture, and an address that a picture has."""

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
_SHOWN_ID = os.environ["SHOWN_ID"]
_PUBLIC_URL = "https://img.example.com/"
_FLAGS = {parameter.name for parameter in (*DETAIL, *RENDITION) if parameter.schema == FLAG} | {"trim"}
_ID = re.compile(ID["pattern"])
_TAG = re.compile(TAG["pattern"])
_INVENTED = {
    parameter.name: re.compile(parameter.schema.get("pattern", "[0-9]{1,11}"))
    for parameter in (*RENDITION, *SIGNED)
    if parameter.name in {"preset", "expires", "signature"}
}
_KEY = re.compile(IDEMPOTENCY_KEY.schema["pattern"])
_numbers = itertools.count()

# The type says nothing to the service, which looks at the bytes.
for kind in ("application/octet-stream", "image/*", *os.environ["PICTURE_TYPES"].split()):
    schemathesis.openapi.media_type(kind, _PICTURES)
schemathesis.openapi.format("uri", st.just(_PICTURE_URL))


def _is_accepted(tag: Any) -> bool:
    """False for a tag that is refused for what no pattern says: nothing visible, or more characters once normalised."""
    if not isinstance(tag, str) or _TAG.fullmatch(tag) is None:
        return True
    try:
        return len(clean_tags([tag])) <= 1
    except ServiceError:
        return False


@schemathesis.hook
def before_call(_: schemathesis.HookContext, case: schemathesis.Case[Any], __: dict[str, Any]) -> None:
    """Leave out what no schema can foretell to be a 400, and addresses that no test can reach."""
    query = case.query or {}
    query.pop("cursor", None)  # the service's own to make: an invented one is refused
    for name in _FLAGS & query.keys():
        if query[name] == "":
            query[name] = "perhaps"  # a bare flag is true: `allowEmptyValue`, which is not understood here
    if isinstance(case.body, dict) and "tags" in case.body:
        query.pop("tags", None)  # here or there, not in both
    if case.headers and _KEY.fullmatch(str(case.headers.get("Idempotency-Key", ""))):
        case.headers["Idempotency-Key"] = f"key-{next(_numbers)}"  # else one goes with two pictures
    if case.operation.path.startswith("/i/") and _ID.fullmatch(str(case.path_parameters.get("id"))):
        case.path_parameters["id"] = _SHOWN_ID  # else hardly any would be of an image that there is
        for name, pattern in _INVENTED.items():  # what nobody made would hide all other parameters
            if pattern.fullmatch(str(query.get(name))):
                del query[name]
        if "watermark" in query and _ID.fullmatch(str(query["watermark"])):
            query["watermark"] = _SHOWN_ID
    for sent in (query, case.body):
        if isinstance(sent, dict) and isinstance(tags := sent.get("tags"), list):
            sent["tags"] = [tag for tag in tags if _is_accepted(tag)] or ["a"]
        elif isinstance(sent, dict) and isinstance(tags, str):  # put together already
            sent["tags"] = ",".join(tag for tag in tags.split(",") if _is_accepted(tag)) or "a"
        # Taken from an answer, which names where a picture is served; nobody serves it here.
        if isinstance(sent, dict) and str(sent.get("url")).startswith(_PUBLIC_URL):
            sent["url"] = _PICTURE_URL
