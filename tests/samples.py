"""Small helpers that several test modules need: bodies to send, and what lies in the storage."""

from __future__ import annotations

import functools
import io
from pathlib import Path

from PIL import Image

from service.settings import Settings


def jpeg(width: int = 64, height: int = 48, *, quality: int = 80, exif: dict[int, object] | None = None) -> bytes:
    """A noisy picture, so that it has some bytes."""
    return _jpeg(width, height, quality, tuple((exif or {}).items()))


@functools.cache
def _jpeg(width: int, height: int, quality: int, tags: tuple[tuple[int, object], ...]) -> bytes:
    exif = Image.Exif()
    for tag, value in tags:
        exif[tag] = value
    out = io.BytesIO()
    Image.effect_noise((width, height), 60).convert("RGB").save(out, "JPEG", quality=quality, exif=exif)
    return out.getvalue()


def stored_files(settings: Settings) -> list[Path]:
    """Every file of the storage, wherever it lies."""
    return sorted(path for path in settings.storage_folder.rglob("*") if path.is_file())
