"""docs/renditions.md knows every parameter, and its pictures are what its URLs show."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import get_args
from urllib.parse import parse_qsl, urlsplit

import pytest
from PIL import Image, ImageChops, ImageSequence, ImageStat

from bench import make_pictures
from service.renditions.parameters import NAMES, SIGNING, parse
from service.renditions.transformation import Direction, Fit, Format
from tests.conftest import Tenant

PAGE = make_pictures.PAGE.read_text()
SHOWN = make_pictures.read_page(PAGE)
# Encoders may round otherwise on another processor.
_MOST_DIFFERENCE = 3


def test_every_picture_is_there_and_small() -> None:
    assert make_pictures.check() == []


def test_a_picture_that_is_missing_too_many_or_without_its_url_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, folder = tmp_path / "page.md", tmp_path / "pictures"
    folder.mkdir()
    page.write_text("| ![a](pictures/a.jpg) | `/i/NKrigl4?width=1` |\n![b](pictures/b.jpg)")
    (folder / "c.jpg").write_bytes(bytes(make_pictures.MAX_BYTES + 1))
    monkeypatch.setattr(make_pictures, "PAGE", page)
    monkeypatch.setattr(make_pictures, "FOLDER", folder)
    assert make_pictures.check() == [
        "b.jpg is shown without its URL.",
        "a.jpg is missing.",
        "c.jpg is shown nowhere.",
        f"c.jpg has {make_pictures.MAX_BYTES + 1} bytes.",
    ]


def test_every_parameter_stands_in_the_table_and_no_other() -> None:
    table = PAGE.partition("## Parameters")[2].partition("\n\nA flag is")[0]
    listed = [name for row in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE) for name in re.findall(r"`(.+?)`", row)]
    assert sorted(listed) == sorted([*NAMES, *SIGNING])
    for word in (*get_args(Fit), *get_args(Direction), *get_args(Format)):
        assert f"`{word}`" in table


def test_every_parameter_that_can_be_seen_has_a_picture() -> None:
    shown = {name for picture in SHOWN for name, _ in parse_qsl(urlsplit(picture.target).query, keep_blank_values=True)}
    assert set(NAMES) - shown == {"metadata", "keep-location", "preset"}


@pytest.mark.parametrize("line", re.findall(r"^\| (`.+?`.*?) \| (?:Send|Leave|Nothing|Sign)", PAGE, re.MULTILINE))
def test_contradictions_are_named_by_parameters_that_there_are(line: str) -> None:
    words = {word.partition("=")[0] for word in re.findall(r"`([a-z-]+(?:=[a-z]+)?)`", line)}
    assert words & {*NAMES, *SIGNING} or "watermark-…" in line


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("worker")
async def test_every_picture_is_what_its_url_shows(port: int, tenant: Tenant) -> None:
    made = await make_pictures.make(f"http://127.0.0.1:{port}", tenant.key)
    assert len(made) == len(SHOWN) > 30
    for picture in SHOWN:
        assert parse(parse_qsl(urlsplit(picture.target).query, keep_blank_values=True)) is not None
        kept, now = opened((make_pictures.FOLDER / picture.file).read_bytes()), opened(made[picture.file])
        assert (kept.format, kept.size, frames(kept)) == (now.format, now.size, frames(now)), picture
        for one, other in zip(ImageSequence.Iterator(kept), ImageSequence.Iterator(now), strict=True):
            assert difference(one, other) < _MOST_DIFFERENCE, picture


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def frames(image: Image.Image) -> int:
    return int(getattr(image, "n_frames", 1))


def difference(one: Image.Image, other: Image.Image) -> float:
    """Of the bands, on average, 0 to 255."""
    bands = ImageStat.Stat(ImageChops.difference(one.convert("RGBA"), other.convert("RGBA"))).mean
    return sum(bands) / len(bands)
