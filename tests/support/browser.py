"""Opens pages in a real Chromium."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from playwright.async_api import Page, async_playwright


@asynccontextmanager
async def open_page(
    width: int = 1280, height: int = 900, color_scheme: Literal["dark", "light"] = "light"
) -> AsyncIterator[Page]:
    """Yields a page of the system's Chromium, without cookies or cache. The test must have the mark `needs`."""
    async with async_playwright() as playwright:
        # Without its sandbox, because CI runs as root. It only opens pages of the tests.
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        try:
            yield await browser.new_page(viewport={"width": width, "height": height}, color_scheme=color_scheme)
        finally:
            await browser.close()
