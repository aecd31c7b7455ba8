"""Which format a client gets, by its Accept header and by the source."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from service.renditions.formats import OUTPUT_FORMATS, accepted_formats, choose_format
from service.renditions.transformation import Format


def test_every_format_is_described() -> None:
    assert set(OUTPUT_FORMATS) == set(get_args(Format))


@pytest.mark.parametrize(
    ("accept", "accepted"),
    [
        ("", ()),
        ("*/*", ()),
        ("image/*", ()),
        ("image/webp", ("webp",)),
        ("image/webp;q=0.8, image/avif", ("avif", "webp")),
        ("IMAGE/AVIF ; q=1", ("avif",)),
        ("image/avif;q=0, image/webp;q=0.000", ()),
        ("image/avif;q=, ;;;,=", ("avif",)),
    ],
)
def test_accepted_formats_are_those_named(accept: str, accepted: tuple[str, ...]) -> None:
    assert accepted_formats(accept) == accepted


@pytest.mark.parametrize(
    ("source", "options", "chosen"),
    [
        ("jpeg", {}, "jpeg"),
        ("heic", {}, "jpeg"),
        ("webp", {}, "jpeg"),
        ("webp", {"transparent": True}, "png"),
        ("png", {}, "png"),
        ("svg", {}, "png"),
        ("gif", {}, "png"),
        ("gif", {"animated": True}, "gif"),
        ("webp", {"animated": True}, "gif"),
        ("jpeg", {"accepted": ("avif", "webp")}, "avif"),
        ("gif", {"accepted": ("avif", "webp"), "animated": True}, "webp"),
        ("gif", {"accepted": ("avif",), "animated": True}, "gif"),
    ],
)
def test_fallback_is_like_the_source(source: str, options: Any, chosen: str) -> None:
    assert choose_format(source, **({"accepted": (), "transparent": False, "animated": False} | options)) == chosen
