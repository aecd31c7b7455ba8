"""The estimated cost of a rendition: the CPU seconds of a child."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, get_args

import pytest

from service.ids import AccountId, ImageId
from service.images.models import Image
from service.media_types import MIME_TYPES
from service.renditions.costs import TOKEN_S, count_tokens, estimate_copy_s, estimate_rendition_s
from service.renditions.normalize import normalize
from service.renditions.parsing import parse
from service.renditions.transformation import Format, Watermark


def image(form: str = "jpeg", width: int = 4000, height: int = 3000, pages: int = 1, size: int = 3_000_000) -> Image:
    return Image(
        ImageId("AAAAAAA"), AccountId(1), "ready", size, b"", [], datetime.now(UTC), form, width, height, 1, pages,
        has_alpha=False,
    )  # fmt: skip


def tokens(query: str, source: Image | None = None, watermark: Image | None = None) -> float:
    source = source or image()
    params = parse([(name, value) for name, _, value in (part.partition("=") for part in query.split("&"))])
    assert params is not None
    transformation, plan, frames = normalize(params, source, accepted=(), widths=())
    return count_tokens(estimate_rendition_s(source, transformation, plan, frames=frames, watermark=watermark))


def test_ordinary_rendition_costs_a_token() -> None:
    costs = [
        tokens(f"width={width}&format={form}", image(width=side * 4, height=side * 3))
        for width in (320, 640)
        for form in ("jpeg", "webp", "avif")
        for side in (500, 1000)
    ]
    assert min(costs) == 1
    assert sum(costs) / len(costs) < 1.5


@pytest.mark.parametrize(
    ("query", "source", "minimum"),
    [
        ("width=10&trim", image(width=6000, height=4000), 5),
        ("width=10&crop=100x100&gravity=smart", image(width=8000, height=6000), 5),
        ("width=10&crop=100x100", image("png", 8000, 6000), 8),
        ("width=10", image("png", 8000, 8000), 10),
        ("width=10", image("avif", 8000, 8000), 20),
        ("width=10", image("heic", 8000, 8000), 20),
        ("width=8000&height=6000&fit=fill&enlarge&format=avif", image(width=10, height=10), 50),
        ("width=4000&format=gif", image(), 50),
        ("width=2000&format=jpeg&sharpen=3", image(), 5),
        ("width=3000&format=jpeg&blur=100", image(), 6),
        ("width=320&format=gif", image("gif", 640, 480, 40), 20),
        ("width=320&format=webp", image("webp", 640, 480, 40), 8),
        ("width=10&format=jpeg&frame=300", image("gif", 500, 500, 300), 10),
        ("width=4000", image("svg", 4000, 3000, size=1000), 8),
        ("width=10", image("svg", size=1_000_000), 10),
    ],
)
def test_expensive_rendition_costs_several_tokens(query: str, source: Image, minimum: float) -> None:
    assert tokens(query, source) >= minimum
    assert tokens("width=10&format=jpeg", image()) == 1


def test_watermark_costs_its_own_decoding() -> None:
    watermark = Watermark(ImageId("BBBBBBB"))
    plain = tokens("width=100&format=jpeg")
    assert tokens(f"width=100&format=jpeg&watermark={watermark.image_id}", None, image("png", 8000, 8000)) > plain + 10


@pytest.mark.parametrize("source", MIME_TYPES)
@pytest.mark.parametrize("form", get_args(Format))
def test_every_format_has_a_cost(source: str, form: str) -> None:
    assert 1 <= tokens(f"width=300&format={form}", image(source, pages=3)) < 1000


def test_cost_grows_with_the_source() -> None:
    small, large = (image(form, side, side) for form, side in (("png", 1000), ("png", 10_000)))
    assert tokens("width=100", large) > 10 * tokens("width=100", small)


def test_copy_costs_by_its_bytes() -> None:
    assert count_tokens(estimate_copy_s(image(size=100_000))) == 1
    assert count_tokens(estimate_copy_s(image(size=50 << 20))) > 4


def test_tokens_count_seconds_of_a_child() -> None:
    assert [count_tokens(seconds) for seconds in (0.0, TOKEN_S, 8.0)] == [1, 1, pytest.approx(8 / TOKEN_S)]


def test_no_step_is_free() -> None:
    steps: dict[str, Any] = {
        "trim": "", "blur": "=5", "sharpen": "=2", "ellipse": "", "grayscale": "", "saturation": "=2",
    }  # fmt: skip
    plain = tokens("width=2000&format=jpeg")
    assert all(tokens(f"width=2000&format=jpeg&{name}{value}") > plain for name, value in steps.items())
