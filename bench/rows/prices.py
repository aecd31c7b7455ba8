"""What renditions cost: the seconds of a child that ordinary ones take, and what others take beside their price.

The first is the mean of what browsers ask for, which is one token of DAGUERRE_RENDITION_RATE_LIMIT. Nothing is queued:
one child of a worker's makes one after the other, the least of several turns counts.
"""

from __future__ import annotations

import asyncio
import io
import statistics
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pyvips
from PIL import Image as Pillow

from bench.photographs import photograph, render
from service.ids import AccountId, ImageId
from service.images.models import Image
from service.renditions.costs import TOKEN_S, estimate_rendition_s
from service.renditions.normalize import normalize
from service.renditions.transformation import Format, RenditionParams
from worker.sandbox.decoder import Usage
from worker.sandbox.pool import DecoderPool

_MAX_PIXELS = 100_000_000
_TIMEOUT_S = 60.0
_TWELVE_MILLION = (4000, 3000, 3_000_000)
_ORDINARY_SOURCES, _ORDINARY_FORMATS, _ORDINARY_WIDTHS = ("m.jpeg", "t.jpeg"), ("jpeg", "webp", "avif"), (320, 640)
_FRAMES = 40


class _Work(NamedTuple):
    source: str
    asked: RenditionParams

    def __str__(self) -> str:
        fields = {name: getattr(self.asked, name) for name in self.asked.__struct_fields__}
        plain = {name: getattr(RenditionParams(), name) for name in self.asked.__struct_fields__}
        words = (f"{name}={value}" for name, value in fields.items() if value != plain[name])
        return f"{self.source} {' '.join(words)}"


def run(
    folder: Path,
    *,
    rounds: int,
    seconds: float,  # noqa: ARG001 - a turn is one rendition
    sizes: Sequence[str],  # noqa: ARG001 - they are its own
) -> None:
    asyncio.run(_run(folder, rounds))


async def _run(folder: Path, rounds: int) -> None:
    images = {path.name: _describe(path) for path in _make_sources(folder)}
    pool = DecoderPool(1, max_pixels=_MAX_PIXELS, timeout_s=_TIMEOUT_S)
    await pool.start()
    try:
        ordinary = [
            await _measure(pool, folder, images, work, rounds)
            for work in (
                _Work(source, RenditionParams(format=form, width=width))
                for source in _ORDINARY_SOURCES
                for form in get_args(Format)
                if form in _ORDINARY_FORMATS
                for width in _ORDINARY_WIDTHS
            )
        ]
        print(f"prices: an ordinary rendition takes {statistics.mean(ordinary) * 1000:.0f} ms, a token is for", end=" ")
        print(f"{TOKEN_S * 1000:.0f}")
        for work in _list_dear(list(images)):
            await _measure(pool, folder, images, work, rounds)
    finally:
        await pool.close()


async def _measure(pool: DecoderPool, folder: Path, images: dict[str, Image], work: _Work, rounds: int) -> float:
    image = images[work.source]
    transformation, plan, frames = normalize(work.asked, image, accepted=(), widths=())
    least = float("inf")
    for _ in range(rounds):
        usage = Usage()
        await pool.render([str(folder / work.source)], transformation, usage=usage)
        least = min(least, usage.seconds)
    estimated = estimate_rendition_s(image, transformation, plan, frames=frames)
    print(f"  {least * 1000:6.0f} ms, estimated {estimated * 1000:6.0f} ({estimated / least:4.1f})  {work}")
    return least


def _list_dear(sources: Sequence[str]) -> Iterator[_Work]:
    for source in sources:
        yield _Work(source, RenditionParams(format="jpeg", width=320))
        yield _Work(source, RenditionParams(format="jpeg", width=320, trim=10.0))
        yield _Work(source, RenditionParams(format="jpeg", width=320, crop=(500, 400), gravity="smart"))
    for form in get_args(Format):
        yield _Work("l.jpeg", RenditionParams(format=form, width=4000))
        yield _Work("m.jpeg", RenditionParams(format=form, width=4000, enlarge=True))
    steps: Sequence[dict[str, Any]] = (
        {"blur": 5.0},
        {"blur": 100.0},
        {"sharpen": 2.0},
        {"saturation": 1.5},
        {"ellipse": True},
        {"rotate": 90},
    )
    for step in steps:
        yield _Work("m.jpeg", RenditionParams(format="jpeg", width=2000, **step))
    for source in ("moving.gif", "moving.webp"):
        for form in ("gif", "webp"):
            yield _Work(source, RenditionParams(format="gif" if form == "gif" else "webp", width=320))


def _make_sources(folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    data = {"m.jpeg": photograph("m"), "t.jpeg": render(*_TWELVE_MILLION), "l.jpeg": photograph("l")}
    still = Pillow.open(io.BytesIO(data["m.jpeg"])).convert("RGB")
    for form in ("png", "webp", "gif", "avif", "tiff"):
        data[f"m.{form}"] = _save([still], form)
    data["t.progressive.jpeg"] = _save([Pillow.open(io.BytesIO(data["t.jpeg"]))], "jpeg", progressive=True)
    frames = [still.resize((640, 480)).rotate(3 * number) for number in range(_FRAMES)]
    for form in ("gif", "webp"):
        data[f"moving.{form}"] = _save(frames, form, save_all=True, append_images=frames[1:], duration=50)
    for name, body in data.items():
        (folder / name).write_bytes(body)
    return [folder / name for name in data]


def _save(frames: Sequence[Pillow.Image], form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    frames[0].save(out, form, **options)
    return out.getvalue()


def _describe(path: Path) -> Image:
    """As its probe would."""
    header = pyvips.Image.new_from_file(str(path), n=-1) if path.stem == "moving" else pyvips.Image.new_from_file(path)
    pages = header.get("n-pages") if path.stem == "moving" else 1
    form, size = path.suffix.removeprefix("."), path.stat().st_size
    height = header.height // pages
    return Image(
        ImageId("AAAAAAA"),
        AccountId(1),
        "ready",
        size,
        b"",
        [],
        datetime.now(UTC),
        form,
        header.width,
        height,
        1,
        pages,
        has_alpha=False,
    )
