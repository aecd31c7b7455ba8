"""`/`: what this server is and where its documentation is, as HTML for people and as JSON for programs."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from pathlib import Path

import msgspec
from aiohttp import web

from service.api.responses import success_response
from service.config.settings import Settings
from service.version import VERSION

_TEMPLATE = Path(__file__).with_name("front.html")
_STYLE = re.compile(r"<style>(.*?)</style>", re.DOTALL)
_QUALITY = re.compile(r"q=(?P<value>[01](?:\.[0-9]{0,3})?)")
_MAX_ACCEPT_PARTS = 32
_HEADERS = {"Vary": "Accept", "Cache-Control": "public, max-age=300"}


class Front(msgspec.Struct, frozen=True):
    """The JSON for programs; `api`, `docs` and `openapi` are URLs."""

    name: str
    version: str
    summary: str
    api: str
    docs: str
    openapi: str


class FrontPage:
    """The HTML and JSON responses, rendered once at start-up."""

    def __init__(self, settings: Settings) -> None:
        url, number = settings.public_url.rstrip("/"), VERSION
        template = _TEMPLATE.read_text()
        filled = template.replace("{version}", html.escape(number)).replace("{url}", html.escape(url))
        self._page = filled.encode()
        self._policy = _make_policy(template)
        self._front = Front(
            "Daguerre", number, "A self-hosted image host", f"{url}/v1", f"{url}/docs", f"{url}/openapi.json"
        )

    async def show(self, request: web.Request) -> web.Response:
        """GET /, without a key."""
        if not prefers_html(",".join(request.headers.getall("Accept", ()))):
            response = success_response(self._front)
            response.headers.update(_HEADERS)
            return response
        headers = {
            **_HEADERS,
            "Content-Security-Policy": self._policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
        return web.Response(body=self._page, content_type="text/html", charset="utf-8", headers=headers)


def prefers_html(accept: str) -> bool:
    """Returns whether an Accept header (RFC 9110, section 12.5.1) lists HTML, and does not prefer JSON.

    Programs send `*/*`, which lists neither.
    """
    qualities = {"text/html": 0.0, "application/json": 0.0}
    for part in accept.lower().split(",")[:_MAX_ACCEPT_PARTS]:
        media_type, *parameters = (word.strip() for word in part.split(";"))
        if media_type in qualities:
            matches = [match for parameter in parameters if (match := _QUALITY.fullmatch(parameter))]
            qualities[media_type] = float(matches[0]["value"]) if matches else 1.0
    return qualities["text/html"] > 0 and qualities["text/html"] >= qualities["application/json"]


def _make_policy(template: str) -> str:
    """Returns the Content-Security-Policy: no resources and no scripts, and the style by its hash."""
    [style] = _STYLE.findall(template)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
