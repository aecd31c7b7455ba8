"""What schemathesis sends where a schema cannot say what works: a picture, and an address that a picture has."""

from __future__ import annotations

import os
from typing import Any

import schemathesis
from hypothesis import strategies as st

from tests.samples import jpeg

_PICTURES = st.sampled_from([jpeg(64, 48), jpeg(30, 40)])

# The type says nothing to the service, which looks at the bytes.
for kind in ("application/octet-stream", "image/*", *os.environ["PICTURE_TYPES"].split()):
    schemathesis.openapi.media_type(kind, _PICTURES)
schemathesis.openapi.format("uri", st.just(os.environ["PICTURE_URL"]))


@schemathesis.hook
def before_call(_: schemathesis.HookContext, case: schemathesis.Case[Any], __: dict[str, Any]) -> None:
    """A cursor is the service's own to make: an invented one is a 400 that no schema can foretell."""
    if case.query:
        case.query.pop("cursor", None)
