"""From RenditionParams and an image to one transformation."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from service.errors import ServiceError
from service.ids import AccountId, ImageId
from service.images.models import Image
from service.renditions.normalize import normalize
from service.renditions.parsing import parse, split_query
from service.renditions.transformation import Transformation, digest


def image(**changes: Any) -> Image:
    columns: dict[str, Any] = {
        "id": ImageId("AAAAAAA"), "account_id": AccountId(1), "state": "ready", "size": 1, "sha256": b"", "tags": [],
        "created_at": datetime.now(UTC), "format": "jpeg", "width": 400, "height": 300, "orientation": 1, "pages": 1,
        "has_alpha": False, "error": None,
    }  # fmt: skip
    return Image(**(columns | changes))


def normalized(query: str, *, widths: tuple[int, ...] = (), **changes: Any) -> Transformation:
    params = parse(split_query(query))
    assert params is not None
    return normalize(params, image(**changes), accepted=(), widths=widths).transformation


def test_equal_requests_have_one_digest() -> None:
    same = ["width=100", "width=50&dpr=2", "width=100&fit=scale-down", "width=100&format=jpeg", "width=100&quality=80"]
    assert len({digest(normalized(query)) for query in same}) == 1
    assert digest(normalized("width=100")) != digest(normalized("width=101"))
    assert digest(normalized("format=png&quality=3")) == digest(normalized("format=png"))


@pytest.mark.parametrize(
    ("query", "size"),
    [
        ("width=1", (100, None)),
        ("width=100", (100, None)),
        ("width=101", (200, None)),
        ("width=900", (200, None)),
        ("width=50&height=30", (100, 60)),
        ("height=75", (100, None)),
        ("size=30%25", (200, None)),
        ("rotate=90&height=400", (200, None)),
        ("grayscale", (None, None)),
        ("crop=10x10", (None, None)),
    ],
)
def test_widths_snap_to_allowed_ones(query: str, size: tuple[int | None, int | None]) -> None:
    snapped = normalized(query, widths=(100, 200))
    assert snapped.percent is None
    if "height=75" in query or "height=400" in query:
        assert snapped.width == size[0]
    else:
        assert (snapped.width, snapped.height) == size


def test_too_large_rendition_is_refused() -> None:
    cases: list[tuple[str, dict[str, Any]]] = [
        ("grayscale", {"width": 8193}),
        ("grayscale", {"width": 8000, "height": 8000}),
        ("size=1000%25&enlarge", {"width": 4000}),
        ("format=webp", {"format": "gif", "pages": 500}),
        ("width=8192&enlarge", {"height": 3000}),
    ]
    for query, changes in cases:
        with pytest.raises(ServiceError) as caught:
            normalized(query, **changes)
        assert caught.value.code == "rendition-too-large"
    assert normalized("format=jpeg", format="gif", pages=500).format == "jpeg"
    assert normalized("format=webp&frame=500", format="gif", pages=500).frame == 500


@pytest.mark.parametrize(
    ("query", "changes"),
    [("frame=2", {}), ("frame=4", {"format": "gif", "pages": 3}), ("frame=2", {"format": "png", "pages": 9})],
)
def test_missing_frame_is_refused(query: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ServiceError, match="frame"):
        normalized(query, **changes)


def test_transparency_decides_the_fallback() -> None:
    assert normalized("ellipse").format == "png"
    assert normalized("ellipse&background=fff").format == "jpeg"
    assert normalized("width=9&height=9&fit=pad&background=fff0").format == "png"
    assert normalized("width=9", format="webp", has_alpha=True).format == "png"
