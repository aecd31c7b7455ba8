"""The API reference at `/docs` in a real Chromium."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Page

from service.api.openapi.samples import LABELS
from tests.conftest import Tenant
from tests.support.browser import open_page
from tests.support.samples import jpeg

pytestmark = [pytest.mark.slow, pytest.mark.needs("chromium"), pytest.mark.timeout(120)]

UPLOAD = "#?route=post-/v1/images"


async def open_reference(page: Page, port: int, route: str = "") -> None:
    await page.goto(f"http://127.0.0.1:{port}/docs{route}")
    await page.locator("#reference").wait_for(state="visible")


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
async def test_page_requests_no_other_host(port: int, color_scheme: str) -> None:
    async with open_page(color_scheme="dark" if color_scheme == "dark" else "light") as page:
        hosts, errors = set(), []
        page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        await open_reference(page, port, UPLOAD)
        background = await page.evaluate("getComputedStyle(document.getElementById('reference')).backgroundColor")
        assert background == {"light": "rgb(251, 250, 248)", "dark": "rgb(23, 24, 26)"}[color_scheme]
    assert hosts <= {f"127.0.0.1:{port}", ""}  # a data: URL has none
    assert errors == []


async def test_operation_shows_seven_samples(port: int) -> None:
    async with open_page() as page:
        await open_reference(page, port, UPLOAD)
        tabs = page.locator("button.tab-btn")
        await tabs.first.wait_for()
        assert tuple(label.strip() for label in (await tabs.all_inner_texts())[: len(LABELS)]) == LABELS
        assert f"http://127.0.0.1:{port}/v1/images" in await page.locator("syntax-highlighter code").first.inner_text()


@pytest.mark.usefixtures("worker")
async def test_upload_can_be_executed_with_a_key(port: int, tenant: Tenant, tmp_path: Path) -> None:
    picture = tmp_path / "picture.jpg"
    picture.write_bytes(jpeg())
    async with open_page() as page:
        await open_reference(page, port, "#?route=auth")
        field = page.locator("input[type=text][placeholder='api-token']").nth(1)
        await field.fill(tenant.key)
        await page.get_by_role("button", name="SET").nth(1).click()
        await page.evaluate(f"location.hash = '{UPLOAD}'")
        await page.locator("input[type=file]").first.set_input_files(picture)
        async with page.expect_response(lambda response: "/v1/images" in response.url) as expected:
            await page.get_by_role("button", name="Execute").first.click()
        response = await expected.value
        assert (response.status, response.request.headers["x-api-key"]) == (200, tenant.key)


async def test_narrow_page_needs_no_sideways_scrolling(port: int) -> None:
    async with open_page(width=390) as page:
        await open_reference(page, port, UPLOAD)
        assert await page.evaluate("document.documentElement.scrollWidth") <= 390
