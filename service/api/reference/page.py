"""`/docs`: the API reference, which the browser renders from `/openapi.json`.

The component is openapi-explorer 2.4.820 from npm (Apache-2.0), vendored unchanged beside this file. It was chosen over
RapiDoc, whose last release loads fonts from another host, and over Scalar, which is four times as large and connects to
its own hosts. To update it: run `npm pack openapi-explorer`, copy `dist/browser/openapi-explorer.min.js` and `LICENSE`,
and check the page in a browser.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from aiohttp import ETag, hdrs, web

from service.errors import ServiceError

_FOLDER = Path(__file__).parent
_HTML, _SCRIPT = "text/html", "text/javascript"
_PAGE = "reference.html"
# The paths below `/docs/`, with the file and the media type of each.
_ASSETS = {
    "reference.js": (Path("reference.js"), _SCRIPT),
    "reference.css": (Path("reference.css"), "text/css"),
    "openapi-explorer.min.js": (Path("openapi-explorer/openapi-explorer.min.js"), _SCRIPT),
    "openapi-explorer.LICENSE.txt": (Path("openapi-explorer/LICENSE"), "text/plain"),
}
_GZIP = re.compile(r"\bgzip\b(?!\s*;\s*q=0(?:\.0*)?\s*(?:,|$))", re.IGNORECASE)
# Nothing from another host, and no script within the page. The component writes `style` attributes and elements.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Cache-Control": "public, no-cache",
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "Vary": "Accept-Encoding",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file as it is sent. `gzipped` is the body compressed by gzip."""

    body: bytes
    gzipped: bytes
    etag: str


_loaded: dict[Path, Asset] = {}


def _load(path: Path) -> Asset:
    """Reads, compresses and caches a file. Blocks for some hundredths of a second."""
    body = (_FOLDER / path).read_bytes()
    asset = _loaded[path] = Asset(body, gzip.compress(body, mtime=0), hashlib.sha256(body).hexdigest()[:16])
    return asset


async def show(request: web.Request) -> web.Response:
    """GET /docs: the page, without a key."""
    return await _respond(request, Path(_PAGE), _HTML)


async def show_asset(request: web.Request) -> web.Response:
    """GET /docs/{asset}: the page's script and style, the component and its licence. Raises `not-found`."""
    asset = _ASSETS.get(request.match_info["asset"])
    if asset is None:
        raise ServiceError("not-found")
    return await _respond(request, *asset)


async def _respond(request: web.Request, path: Path, media_type: str) -> web.Response:
    asset = _loaded.get(path)
    if asset is None:
        asset = await asyncio.to_thread(_load, path)
    if {tag.value for tag in request.if_none_match or ()} & {asset.etag, "*"}:
        response = web.Response(status=304, headers=_HEADERS)
    else:
        is_gzipped = _GZIP.search(request.headers.get(hdrs.ACCEPT_ENCODING, "")) is not None
        body = asset.gzipped if is_gzipped else asset.body
        response = web.Response(body=body, content_type=media_type, charset="utf-8", headers=_HEADERS)
        if is_gzipped:
            response.headers[hdrs.CONTENT_ENCODING] = "gzip"
    response.etag = ETag(asset.etag, is_weak=True)
    return response
