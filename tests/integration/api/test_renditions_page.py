"""docs/renditions.md: its table of parameters, and its pictures, which its URLs render."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import get_args
from urllib.parse import parse_qsl, urlsplit

import pytest
from PIL import Image, ImageChops, ImageSequence, ImageStat

from bench import make_pictures
from service.renditions.parameters import NAMES, SIGNING, markdown_rows
from service.renditions.parsing import parse
from service.renditions.transformation import Direction, Fit, Format
from tests.conftest import Tenant

PAGE = make_pictures.PAGE.read_text()
SHOWN = make_pictures.read_page(PAGE)
# Encoders may round differently on another processor.
MAX_DIFFERENCE = 3


def test_all_pictures_exist_and_are_small() -> None:
    assert make_pictures.check() == []


def test_pictures_are_checked_against_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, folder = tmp_path / "page.md", tmp_path / "pictures"
    folder.mkdir()
    page.write_text("| ![a](pictures/a.jpg) | `/i/NKrigl4?width=1` |\n![b](pictures/b.jpg)")
    (folder / "c.jpg").write_bytes(bytes(make_pictures.MAX_BYTES + 1))
    monkeypatch.setattr(make_pictures, "PAGE", page)
    monkeypatch.setattr(make_pictures, "FOLDER", folder)
    assert make_pictures.check() == [
        "b.jpg is shown without its URL.",
        "a.jpg is missing.",
        "c.jpg is not shown.",
        f"c.jpg has {make_pictures.MAX_BYTES + 1} bytes.",
    ]


def test_table_is_the_one_of_the_parameters() -> None:
    """`python -m service.renditions.parameters` prints its rows."""
    table = PAGE.partition("## Parameters")[2].partition("\n\nA flag is")[0].strip().splitlines()
    assert table[2:-1] == markdown_rows()
    assert re.findall("`(.+?)`", table[-1]) == sorted(SIGNING)
    for word in (*get_args(Fit), *get_args(Direction), *get_args(Format)):
        assert f"`{word}`" in "".join(table)


def test_visible_parameters_have_a_picture() -> None:
    shown = {name for picture in SHOWN for name, _ in parse_qsl(urlsplit(picture.target).query, keep_blank_values=True)}
    assert set(NAMES) - shown == {"metadata", "keep-location", "preset"}


@pytest.mark.parametrize("line", re.findall(r"^\| (`.+?`.*?) \| (?:Send|Leave|Nothing|Sign)", PAGE, re.MULTILINE))
def test_conflicts_name_existing_parameters(line: str) -> None:
    words = {word.partition("=")[0] for word in re.findall(r"`([a-z-]+(?:=[a-z]+)?)`", line)}
    assert words & {*NAMES, *SIGNING} or "watermark-…" in line


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.usefixtures("worker")
async def test_pictures_show_what_their_urls_render(port: int, tenant: Tenant) -> None:
    rendered = await make_pictures.make(f"http://127.0.0.1:{port}", tenant.key)
    assert len(rendered) == len(SHOWN) > 30
    for picture in SHOWN:
        assert parse(parse_qsl(urlsplit(picture.target).query, keep_blank_values=True)) is not None
        stored, current = (
            open_image((make_pictures.FOLDER / picture.file).read_bytes()),
            open_image(rendered[picture.file]),
        )
        assert (stored.format, stored.size, count_frames(stored)) == (
            current.format,
            current.size,
            count_frames(current),
        ), picture
        for one, other in zip(ImageSequence.Iterator(stored), ImageSequence.Iterator(current), strict=True):
            assert difference(one, other) < MAX_DIFFERENCE, picture


def open_image(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def count_frames(image: Image.Image) -> int:
    return int(getattr(image, "n_frames", 1))


def difference(one: Image.Image, other: Image.Image) -> float:
    """Returns the mean difference of the bands, 0 to 255."""
    bands = ImageStat.Stat(ImageChops.difference(one.convert("RGBA"), other.convert("RGBA"))).mean
    return sum(bands) / len(bands)
