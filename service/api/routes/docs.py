"""`/openapi.json`: the machine-readable description of the API."""

from __future__ import annotations

import hashlib
from functools import cached_property

import msgspec
from aiohttp import ETag, web

from service.api.openapi.document import make_document
from service.config.settings import Settings


class OpenApiDocument:
    """The OpenAPI document, encoded once, at the first request."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @cached_property
    def _body(self) -> bytes:
        return msgspec.json.encode(make_document(self._settings))

    @cached_property
    def _etag(self) -> str:
        return hashlib.sha256(self._body).hexdigest()[:16]

    async def show(self, request: web.Request) -> web.Response:
        """GET /openapi.json, without a key. Clients may cache it, and revalidate it by its ETag."""
        etags = {tag.value for tag in request.if_none_match or ()}
        if etags & {self._etag, "*"}:
            response = web.Response(status=304)
        else:
            response = web.Response(body=self._body, content_type="application/json")
        response.etag = ETag(self._etag)
        response.headers["Cache-Control"] = "public, no-cache"
        return response
