"""The CPU time of renditions compared with their estimates.

First the mean of typical renditions, which is one token of DAGUERRE_RENDITION_RATE_LIMIT; then expensive ones. There is
no queue: one decoder process makes one rendition after the other, and the minimum of several turns counts.
"""

from __future__ import annotations

import asyncio
import io
import statistics
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, get_args

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
_TWELVE_MEGAPIXELS = (4000, 3000, 3_000_000)
_TYPICAL_SOURCES, _TYPICAL_FORMATS, _TYPICAL_WIDTHS = ("m.jpeg", "t.jpeg"), ("jpeg", "webp", "avif"), (320, 640)
_FRAMES = 40


class _Case(NamedTuple):
    source: str
    params: RenditionParams

    def __str__(self) -> str:
        fields = {name: getattr(self.params, name) for name in self.params.__struct_fields__}
        defaults = {name: getattr(RenditionParams(), name) for name in self.params.__struct_fields__}
        words = (f"{name}={value}" for name, value in fields.items() if value != defaults[name])
        return f"{self.source} {' '.join(words)}"


def run(
    folder: Path,
    *,
    rounds: int,
    seconds: float,  # noqa: ARG001 - a turn is one rendition
    sizes: Sequence[str],  # noqa: ARG001 - it has its own
) -> None:
    asyncio.run(_run(folder, rounds))


async def _run(folder: Path, rounds: int) -> None:
    images = {path.name: _describe(path) for path in _make_sources(folder)}
    pool = DecoderPool(1, max_pixels=_MAX_PIXELS, timeout_s=_TIMEOUT_S)
    await pool.start()
    try:
        typical = [
            await _measure(pool, folder, images, case, rounds)
            for case in (
                _Case(source, RenditionParams(format=form, width=width))
                for source in _TYPICAL_SOURCES
                for form in get_args(Format)
                if form in _TYPICAL_FORMATS
                for width in _TYPICAL_WIDTHS
            )
        ]
        mean_ms, token_ms = statistics.mean(typical) * 1000, TOKEN_S * 1000
        print(f"prices: a typical rendition takes {mean_ms:.0f} ms, one token is {token_ms:.0f} ms")
        for case in _list_expensive(list(images)):
            await _measure(pool, folder, images, case, rounds)
    finally:
        await pool.close()


async def _measure(pool: DecoderPool, folder: Path, images: dict[str, Image], case: _Case, rounds: int) -> float:
    image = images[case.source]
    transformation, plan, frames = normalize(case.params, image, accepted=(), widths=())
    minimum_s = float("inf")
    for _ in range(rounds):
        usage = Usage()
        await pool.render([str(folder / case.source)], transformation, usage=usage)
        minimum_s = min(minimum_s, usage.seconds)
    estimated_s = estimate_rendition_s(image, transformation, plan, frames=frames)
    print(f"  {minimum_s * 1000:6.0f} ms, estimated {estimated_s * 1000:6.0f} ({estimated_s / minimum_s:4.1f})  {case}")
    return minimum_s


def _list_expensive(sources: Sequence[str]) -> Iterator[_Case]:
    for source in sources:
        yield _Case(source, RenditionParams(format="jpeg", width=320))
        yield _Case(source, RenditionParams(format="jpeg", width=320, trim=10.0))
        yield _Case(source, RenditionParams(format="jpeg", width=320, crop=(500, 400), gravity="smart"))
    for form in get_args(Format):
        yield _Case("l.jpeg", RenditionParams(format=form, width=4000))
        yield _Case("m.jpeg", RenditionParams(format=form, width=4000, enlarge=True))
    steps: Sequence[dict[str, Any]] = (
        {"blur": 5.0},
        {"blur": 100.0},
        {"sharpen": 2.0},
        {"saturation": 1.5},
        {"ellipse": True},
        {"rotate": 90},
    )
    for step in steps:
        yield _Case("m.jpeg", RenditionParams(format="jpeg", width=2000, **step))
    for source in ("moving.gif", "moving.webp"):
        for form in ("gif", "webp"):
            yield _Case(source, RenditionParams(format="gif" if form == "gif" else "webp", width=320))


def _make_sources(folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    data = {"m.jpeg": photograph("m"), "t.jpeg": render(*_TWELVE_MEGAPIXELS), "l.jpeg": photograph("l")}
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
    """Returns the row that a probe of the file would write."""
    with Pillow.open(path) as picture:
        width, height = picture.size
        pages = getattr(picture, "n_frames", 1)
    form, size = path.suffix.removeprefix("."), path.stat().st_size
    return Image(
        ImageId("AAAAAAA"),
        AccountId(1),
        "ready",
        size,
        b"",
        [],
        datetime.now(UTC),
        form,
        width,
        height,
        1,
        pages,
        has_alpha=False,
    )
