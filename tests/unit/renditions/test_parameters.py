"""What a URL's parameters come to: parsed, merged with presets, negotiated and resolved to one rendition."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

import pytest

from service.errors import ServiceError
from service.ids import AccountId, ImageId
from service.images.models import Image
from service.renditions.formats import accepted_formats, choose_format
from service.renditions.normalize import normalize
from service.renditions.parameters import NAMES, RenditionParams, check_preset, parse
from service.renditions.transformation import Transformation, Watermark, digest


def asked(query: str, name: str = "", presets: Mapping[str, str] | None = None) -> RenditionParams | None:
    return parse(parse_qsl(query, keep_blank_values=True), name, presets)


def refusal(query: str, name: str = "", presets: Mapping[str, str] | None = None) -> str:
    with pytest.raises(ServiceError) as caught:
        asked(query, name, presets)
    assert caught.value.code == "invalid-parameter"
    return caught.value.message


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("width=300", RenditionParams(width=300)),
        ("size=300x200", RenditionParams(width=300, height=200)),
        ("size=12.5%25", RenditionParams(percent=12.5)),
        ("crop=10x20&gravity=0.25,1", RenditionParams(crop=(10, 20), gravity=(0.25, 1.0))),
        (
            "width=1&height=2&fit=cover&gravity=center",
            RenditionParams(width=1, height=2, fit="cover", gravity="centre"),
        ),
        ("width=150&height=100&dpr=1.5&blur=2", RenditionParams(width=225, height=150, blur=3.0)),
        ("background=fc0", RenditionParams(background=(255, 204, 0, 255))),
        ("background=%23ffcc0080", RenditionParams(background=(255, 204, 0, 128))),
        ("background=transparent", RenditionParams(background=(0, 0, 0, 0))),
        (
            "grayscale&ellipse=yes&flip=1&flop=on&enlarge=true",
            RenditionParams(grayscale=True, ellipse=True, flip=True, flop=True, enlarge=True),
        ),
        ("grayscale=false&saturation=2", RenditionParams(saturation=2.0)),
        ("trim", RenditionParams(trim=10.0)),
        ("trim=1", RenditionParams(trim=1.0)),
        ("trim=no", RenditionParams()),
        ("rotate=270&frame=3&quality=1", RenditionParams(rotate=270, frame=3, quality=1)),
        ("format=jpg", RenditionParams(format="jpeg")),
        ("format=auto", RenditionParams()),
        ("metadata=keep&keep-location", RenditionParams(metadata="keep", keep_location=True)),
        (
            "watermark=AAAAAAA&watermark-position=north&watermark-opacity=.5".replace("=.5", "=0.5"),
            RenditionParams(watermark=Watermark(ImageId("AAAAAAA"), position="north", opacity=0.5)),
        ),
    ],
)
def test_parameters_say_what_they_ask_for(query: str, wanted: RenditionParams) -> None:
    assert asked(query) == wanted


def test_no_parameter_asks_for_the_raw_image() -> None:
    assert asked("") is None
    assert asked("", "red-car") is None
    assert asked("", "red-car.pdf") is None
    assert asked("signature=x&expires=1") is None


def test_an_extension_is_the_format() -> None:
    assert asked("", "car.JPG") == RenditionParams(format="jpeg")
    assert asked("width=2", "my.car.webp") == RenditionParams(width=2, format="webp")
    assert "format" in refusal("format=png", "car.jpg")


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"preset"}))
def test_every_parameter_refuses_nonsense_by_its_name(name: str) -> None:
    for value in ("-1", "\u0663", "1" * 40, "nan", "x" * 5000, "1;2", "\x00", "0x10", "1e+3", "inf"):
        message = refusal(f"{name}={value}")
        assert name in message
        assert len(message) < 700


@pytest.mark.parametrize(
    "query",
    [
        "fit=pad&width=1",
        "fit=fill&height=1",
        "fit=scale-down&width=1&enlarge",
        "gravity=smart&width=1&height=1&fit=pad",
        "dpr=2",
        "dpr=2&size=50%25",
        "width=8192&dpr=2",
        "blur=1&sharpen=1",
        "grayscale&saturation=1",
        "size=1x1&height=1",
    ],
)
def test_conflicts_are_refused(query: str) -> None:
    refusal(query)


def test_what_was_sent_is_not_repeated_at_length() -> None:
    assert "'key'" in refusal("key=SECRET")
    assert "SECRET" not in refusal("key=SECRET")
    assert "<" not in refusal("%3Cscript%3E" + "a" * 100 + "=1")
    assert len(refusal(f"preset={'x' * 1000}")) < 100
    assert "card" in refusal("preset=card")


def test_a_request_overrides_its_preset() -> None:
    presets = {"card": "width=10&height=20&fit=cover&quality=5"}
    assert asked("preset=card", presets=presets) == RenditionParams(width=10, height=20, fit="cover", quality=5)
    assert asked("preset=card&width=30", presets=presets) == RenditionParams(
        width=30, height=20, fit="cover", quality=5
    )
    assert asked("preset=card", "car.gif", presets) == RenditionParams(
        width=10, height=20, fit="cover", quality=5, format="gif"
    )
    assert "preset" in refusal("preset=other", presets=presets)
    assert "preset" in refusal("preset=../x", presets=presets)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "preset=card",
        "foo=1",
        "width=1&signature=a",
        "width=1&signature=a&expires=1",
        "width=0",
        "fit=cover",
        "width=1&" * 200,
    ],
)
def test_a_preset_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ServiceError):
        check_preset(text)


@pytest.mark.parametrize(
    ("accept", "taken"),
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
def test_what_a_client_takes_is_what_it_names(accept: str, taken: tuple[str, ...]) -> None:
    assert accepted_formats(accept) == taken


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
        ("jpeg", {"taken": ("avif", "webp")}, "avif"),
        ("gif", {"taken": ("avif", "webp"), "animated": True}, "webp"),
        ("gif", {"taken": ("avif",), "animated": True}, "gif"),
    ],
)
def test_without_a_modern_format_it_is_the_kind_of_the_source(source: str, options: Any, chosen: str) -> None:
    assert choose_format(source, **({"taken": (), "transparent": False, "animated": False} | options)) == chosen


def image(**changes: Any) -> Image:
    columns: dict[str, Any] = {
        "id": ImageId("AAAAAAA"), "account_id": AccountId(1), "state": "ready", "size": 1, "sha256": b"", "tags": [],
        "created_at": datetime.now(UTC), "format": "jpeg", "width": 400, "height": 300, "orientation": 1, "pages": 1,
        "has_alpha": False, "error": None,
    }  # fmt: skip
    return Image(**(columns | changes))


def resolved(query: str, *, widths: tuple[int, ...] = (), **changes: Any) -> Transformation:
    wanted = asked(query)
    assert wanted is not None
    return normalize(wanted, image(**changes), accepted=(), widths=widths).transformation


def test_equal_wishes_are_one_rendition() -> None:
    same = ["width=100", "width=50&dpr=2", "width=100&fit=scale-down", "width=100&format=jpeg", "width=100&quality=80"]
    assert len({digest(resolved(query)) for query in same}) == 1
    assert digest(resolved("width=100")) != digest(resolved("width=101"))
    assert digest(resolved("format=png&quality=3")) == digest(resolved("format=png"))


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
def test_widths_become_the_next_allowed(query: str, size: tuple[int | None, int | None]) -> None:
    snapped = resolved(query, widths=(100, 200))
    assert snapped.percent is None
    if "height=75" in query or "height=400" in query:
        assert snapped.width == size[0]
    else:
        assert (snapped.width, snapped.height) == size


def test_what_is_too_large_is_refused_before_it_is_made() -> None:
    cases: list[tuple[str, dict[str, Any]]] = [
        ("grayscale", {"width": 8193}),
        ("grayscale", {"width": 8000, "height": 8000}),
        ("size=1000%25&enlarge", {"width": 4000}),
        ("format=webp", {"format": "gif", "pages": 500}),
        ("width=8192&enlarge", {"height": 3000}),
    ]
    for query, changes in cases:
        with pytest.raises(ServiceError) as caught:
            resolved(query, **changes)
        assert caught.value.code == "rendition-too-large"
    assert resolved("format=jpeg", format="gif", pages=500).format == "jpeg"
    assert resolved("format=webp&frame=500", format="gif", pages=500).frame == 500


@pytest.mark.parametrize(
    ("query", "changes"),
    [("frame=2", {}), ("frame=4", {"format": "gif", "pages": 3}), ("frame=2", {"format": "png", "pages": 9})],
)
def test_a_frame_is_one_of_those_there_are(query: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ServiceError, match="frame"):
        resolved(query, **changes)


def test_transparency_decides_what_stands_for_a_format() -> None:
    assert resolved("ellipse").format == "png"
    assert resolved("ellipse&background=fff").format == "jpeg"
    assert resolved("width=9&height=9&fit=pad&background=fff0").format == "png"
    assert resolved("width=9", format="webp", has_alpha=True).format == "png"
