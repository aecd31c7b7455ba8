"""`/`: a page for browsers, JSON for programs."""

from __future__ import annotations

import re

import pytest

from service.api.routes.front import prefers_html
from tests.conftest import Client

BROWSERS = [
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",  # Firefox, Chromium
    "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",  # Safari
    "TEXT/HTML",
    "application/json;q=0.5, text/html;q=0.9",
]
PROGRAMS = [
    *("", "*/*", "text/*", "application/json", "application/json, text/plain, */*", ",;=,"),
    *("text/html;q=0", "text/html;q=0.1, application/json"),
]


@pytest.mark.parametrize("accept", BROWSERS)
def test_browsers_prefer_html(accept: str) -> None:
    assert prefers_html(accept)


@pytest.mark.parametrize("accept", PROGRAMS)
def test_programs_prefer_json(accept: str) -> None:
    assert not prefers_html(accept)


async def test_page_needs_no_key_and_loads_nothing(api: Client) -> None:
    response = await api.get("/", headers={"Accept": BROWSERS[0]})
    page = await response.text()
    assert (response.status, response.content_type) == (200, "text/html")
    assert "self-hosted image host" in page
    assert "https://img.example.com/v1/images" in page
    assert re.findall(r'(?:href|src|action)="([^"]+)"', page) == ["docs", "openapi.json", "readyz"]
    assert "url(" not in page
    assert "<script" not in page
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert response.headers["Vary"] == "Accept"
    assert len(page.encode()) < 4096


async def test_json_links_to_the_documentation(api: Client) -> None:
    response = await api.get("/")
    body = await response.json()
    assert (response.status, body["success"]) == (200, True)
    assert body["response"]["openapi"] == "https://img.example.com/openapi.json"
    assert response.headers["Vary"] == "Accept"
    assert (await api.head("/")).status == 200
    assert (await api.post("/")).status == 405


@pytest.mark.settings(public_url='https://x.example/"><script>alert(1)</script>')
async def test_public_url_is_escaped(api: Client) -> None:
    page = await (await api.get("/", headers={"Accept": "text/html"})).text()
    assert "<script" not in page
