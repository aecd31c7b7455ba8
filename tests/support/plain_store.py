"""A server with just enough of the S3 API to keep objects in memory, and with faults that real stores rarely show."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import formatdate

from aiohttp import web
from aiohttp.test_utils import TestServer

from service.config.values import StoreUrl

BUCKET = StoreUrl("s3", "plain-bucket")
_NOTE = "x-amz-meta-daguerre"


class PlainStore:
    """The objects of one bucket by name, and their metadata. It takes any signature.

    It cannot read the objects in `broken`, and replaces objects in spite of If-None-Match if it `ignores_conditions`.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.notes: dict[str, str] = {}
        self.broken: set[str] = set()
        self.ignores_conditions = False
        self.url = ""

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[PlainStore]:
        self = cls()
        app = web.Application(client_max_size=100 << 20)
        app.router.add_route("*", f"/{BUCKET.bucket}/{{name:.*}}", self._handle)
        async with TestServer(app) as server:
            self.url = str(server.make_url("")).rstrip("/")
            yield self

    def environment(self) -> dict[str, str]:
        return {"AWS_ENDPOINT_URL_S3": self.url, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}

    async def _handle(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name in self.broken:
            return web.Response(status=500)
        if request.method == "PUT":
            return self._put(request, name, await request.read())
        if name not in self.objects:
            return web.Response(status=404)
        content = self.objects[name]
        headers = {
            "ETag": f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"',
            "Last-Modified": formatdate(1_700_000_000, usegmt=True),
            _NOTE: self.notes.get(name, ""),
        }
        return web.Response(body=content, headers=headers)

    def _put(self, request: web.Request, name: str, content: bytes) -> web.Response:
        if name in self.objects and "If-None-Match" in request.headers and not self.ignores_conditions:
            return web.Response(status=412)
        self.objects[name], self.notes[name] = content, request.headers.get(_NOTE, "")
        return web.Response(headers={"ETag": f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'})
