"""Make the pictures of docs/renditions.md, by the very URLs that stand there beside them, from the sample landscape.

`python -m bench.make_pictures --url http://127.0.0.1:8080 --key KEY` asks a running Daguerre for them;
`--check` says without one whether all of them are there.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import aiohttp
from PIL import Image
from yarl import URL

_ROOT = Path(__file__).parents[1]
PAGE = _ROOT / "docs/renditions.md"
FOLDER = _ROOT / "docs/pictures"
_PHOTOGRAPH = _ROOT / "service/launcher/embedded/sample.jpg"

MAX_BYTES = 15_000
MAX_BYTES_TOGETHER = 400_000

_SHOWN = re.compile(r"!\[[^\]]*\]\(pictures/(?P<file>[\w.-]+)\) \| `(?P<target>/i/[^`]+)`")
_LINKED = re.compile(r"\(pictures/([^)]+)\)")
_SUFFIXES = {
    "image/jpeg": ".jpg",
    "image/png": ".png",
    "image/webp": ".webp",
    "image/avif": ".avif",
    "image/gif": ".gif",
}

# The ids that the page gives to its images.
PHOTOGRAPH, MARK, BORDERED, ANIMATION = "NKrigl4", "1Zb0Qx4", "6aV2Kd8", "Xw3mP9q"

_MARK_SVG = b"""\
<svg xmlns="http://www.w3.org/2000/svg" width="320" height="160" viewBox="0 0 32 16" fill="#fff">
<path d="M1 15 L9 3 L13 9 L16 5 L23 15 Z"/><circle cx="26" cy="5" r="4"/></svg>
"""
_FRAMES, _FRAME_SIZE, _FRAME_MS = 8, (600, 600), 150


class Shown(NamedTuple):
    """A picture of the page: its file in `FOLDER`, and path and query of its URL."""

    file: str
    target: str


def read_page(text: str) -> list[Shown]:
    return [Shown(match["file"], match["target"]) for match in _SHOWN.finditer(text)]


def check() -> list[str]:
    """What is wrong with the pictures that are there, a sentence each."""
    text = PAGE.read_text()
    shown = [picture.file for picture in read_page(text)]
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    wrong = [f"{name} is shown without its URL." for name in set(_LINKED.findall(text)) - set(shown)]
    wrong += [f"{name} is shown twice." for name in sorted(set(shown)) if shown.count(name) > 1]
    wrong += [f"{name} is missing." for name in shown if name not in sizes]
    wrong += [f"{name} is shown nowhere." for name in sizes if name not in shown]
    wrong += [f"{name} has {size} bytes." for name, size in sizes.items() if size > MAX_BYTES]
    if sum(sizes.values()) > MAX_BYTES_TOGETHER:
        wrong.append(f"All of them have {sum(sizes.values())} bytes.")
    return wrong


async def make(url: str, key: str) -> dict[str, bytes]:
    """Every picture of the page, by its file's name. Raises RuntimeError for one that is not to be had."""
    async with aiohttp.ClientSession(url, headers={"X-Api-Key": key}) as session:
        ids = await _upload_all(session)
        return {
            picture.file: await _get(session, _with_ids(picture.target, ids), Path(picture.file).suffix)
            for picture in read_page(PAGE.read_text())
        }


async def _upload_all(session: aiohttp.ClientSession) -> dict[str, str]:
    """The images of the page, by the ids that they have there."""
    photograph = _PHOTOGRAPH.read_bytes()
    ids = {PHOTOGRAPH: await _upload(session, photograph)}
    border = "?width=300&height=260&fit=pad&background=f4efe6&format=png"
    bordered = await _get(session, f"/i/{ids[PHOTOGRAPH]}{border}", ".png")
    for name, data in ((MARK, _MARK_SVG), (BORDERED, bordered), (ANIMATION, _animate(photograph))):
        ids[name] = await _upload(session, data)
    return ids


async def _upload(session: aiohttp.ClientSession, data: bytes) -> str:
    headers = {"Content-Type": "application/octet-stream"}
    async with session.post("/v1/images", data=data, headers=headers) as answer:
        if answer.status != 200:
            raise RuntimeError(f"An upload was answered {answer.status}: {await answer.text()}")
        return str((await answer.json())["response"]["id"])


async def _get(session: aiohttp.ClientSession, target: str, suffix: str) -> bytes:
    async with session.get(URL(target, encoded=True)) as answer:
        if answer.status != 200:
            raise RuntimeError(f"{target} was answered {answer.status}: {await answer.text()}")
        if _SUFFIXES[answer.content_type] != suffix:
            raise RuntimeError(f"{target} is {answer.content_type}, shown as {suffix}")
        return await answer.read()


def _with_ids(target: str, ids: Mapping[str, str]) -> str:
    for shown, real in ids.items():
        target = target.replace(shown, real)
    return target


def _animate(photograph: bytes) -> bytes:
    """A look along the shore, from left to right."""
    picture = Image.open(io.BytesIO(photograph)).convert("RGB")
    width, height = _FRAME_SIZE
    top, step = (picture.height - height) // 2, (picture.width - width) // (_FRAMES - 1)
    frames = [picture.crop((step * n, top, step * n + width, top + height)) for n in range(_FRAMES)]
    out = io.BytesIO()
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:], duration=_FRAME_MS, loop=0, quality=85)
    return out.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.make_pictures", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="Where Daguerre runs.")
    parser.add_argument("--key", help="An API key of an account that the images are uploaded to.")
    parser.add_argument("--check", action="store_true", help="Only tell whether the pictures are there.")
    asked = parser.parse_args()
    if not asked.check:
        if asked.key is None:
            parser.error("--key is needed, unless with --check")
        made = asyncio.run(make(asked.url, asked.key))
        FOLDER.mkdir(exist_ok=True)
        for path in FOLDER.iterdir():
            if path.name not in made:
                path.unlink()
        for name, data in made.items():
            (FOLDER / name).write_bytes(data)
    wrong = check()
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    if not wrong:
        sizes = [path.stat().st_size for path in FOLDER.iterdir()]
        print(f"{len(sizes)} pictures, {sum(sizes)} bytes")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
