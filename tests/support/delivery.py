"""Requests of `/i/{id}`: pictures for them, what their responses say, and the files of renditions."""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import ClientResponse
from PIL import Image

from service.config.settings import Settings
from service.storage.files import SMALL_BYTES
from tests.support import pictures

MODERN = "image/avif,image/webp,image/*,*/*;q=0.8"
Upload = Callable[..., Awaitable[str]]


def rendition_files(settings: Settings) -> list[Path]:
    """The files of the local storage of renditions."""
    return [path for path in settings.renditions_folder.rglob("*") if path.is_file()]


def large_png() -> bytes:
    """Noise, which does not get smaller: more than what is kept in memory."""
    data = pictures.encode("png", Image.effect_noise((900, 900), 200))
    assert len(data) > 2 * SMALL_BYTES
    return data


async def opened(answer: ClientResponse) -> Image.Image:
    assert answer.status == 200, await answer.text()
    return Image.open(io.BytesIO(await answer.read()))


async def code(answer: ClientResponse) -> str:
    """The code of an error, which no cache may store."""
    assert answer.headers["Cache-Control"] == "no-store"
    return str((await answer.json())["error"]["code"])
