"""Makes the pictures of docs/renditions.md from the sample landscape, by requesting the URLs next to them.

`python -m bench.make_pictures --url http://127.0.0.1:8080 --key KEY` requests them from a running Daguerre.
`--check` only checks that all pictures exist.
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
MAX_TOTAL_BYTES = 400_000

_PICTURE_ROW = re.compile(r"!\[[^\]]*\]\(pictures/(?P<file>[\w.-]+)\) \| `(?P<target>/i/[^`]+)`")
_LINK = re.compile(r"\(pictures/([^)]+)\)")
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


class Example(NamedTuple):
    """A picture of the page: its file name in `FOLDER`, and the path and query of its URL."""

    file: str
    target: str


def read_page(text: str) -> list[Example]:
    return [Example(match["file"], match["target"]) for match in _PICTURE_ROW.finditer(text)]


def check() -> list[str]:
    """Returns the problems of the existing pictures, one sentence each."""
    text = PAGE.read_text()
    names = [example.file for example in read_page(text)]
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    problems = [f"{name} is shown without its URL." for name in set(_LINK.findall(text)) - set(names)]
    problems += [f"{name} is shown twice." for name in sorted(set(names)) if names.count(name) > 1]
    problems += [f"{name} is missing." for name in names if name not in sizes]
    problems += [f"{name} is not shown." for name in sizes if name not in names]
    problems += [f"{name} has {size} bytes." for name, size in sizes.items() if size > MAX_BYTES]
    if sum(sizes.values()) > MAX_TOTAL_BYTES:
        problems.append(f"All pictures together have {sum(sizes.values())} bytes.")
    return problems


async def make(url: str, key: str) -> dict[str, bytes]:
    """Returns every picture of the page by its file name. Raises RuntimeError if a response is not the picture."""
    async with aiohttp.ClientSession(url, headers={"X-Api-Key": key}) as session:
        ids = await _upload_all(session)
        return {
            example.file: await _get(session, _with_ids(example.target, ids), Path(example.file).suffix)
            for example in read_page(PAGE.read_text())
        }


async def _upload_all(session: aiohttp.ClientSession) -> dict[str, str]:
    """Uploads the images of the page. Returns their ids by the ids that the page shows."""
    photograph = _PHOTOGRAPH.read_bytes()
    ids = {PHOTOGRAPH: await _upload(session, photograph)}
    border = "?width=300&height=260&fit=pad&background=f4efe6&format=png"
    bordered = await _get(session, f"/i/{ids[PHOTOGRAPH]}{border}", ".png")
    for name, data in ((MARK, _MARK_SVG), (BORDERED, bordered), (ANIMATION, _animate(photograph))):
        ids[name] = await _upload(session, data)
    return ids


async def _upload(session: aiohttp.ClientSession, data: bytes) -> str:
    headers = {"Content-Type": "application/octet-stream"}
    async with session.post("/v1/images", data=data, headers=headers) as response:
        if response.status != 200:
            raise RuntimeError(f"The response to an upload was {response.status}: {await response.text()}")
        return str((await response.json())["response"]["id"])


async def _get(session: aiohttp.ClientSession, target: str, suffix: str) -> bytes:
    async with session.get(URL(target, encoded=True)) as response:
        if response.status != 200:
            raise RuntimeError(f"The response to {target} was {response.status}: {await response.text()}")
        if _SUFFIXES[response.content_type] != suffix:
            raise RuntimeError(f"{target} is {response.content_type}, but its file is {suffix}")
        return await response.read()


def _with_ids(target: str, ids: Mapping[str, str]) -> str:
    for example_id, image_id in ids.items():
        target = target.replace(example_id, image_id)
    return target


def _animate(photograph: bytes) -> bytes:
    """Returns an animation that pans along the shore from left to right."""
    picture = Image.open(io.BytesIO(photograph)).convert("RGB")
    width, height = _FRAME_SIZE
    top, step = (picture.height - height) // 2, (picture.width - width) // (_FRAMES - 1)
    frames = [picture.crop((step * n, top, step * n + width, top + height)) for n in range(_FRAMES)]
    out = io.BytesIO()
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:], duration=_FRAME_MS, loop=0, quality=85)
    return out.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.make_pictures", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="Address of Daguerre.")
    parser.add_argument("--key", help="An API key of the account that the images are uploaded to.")
    parser.add_argument("--check", action="store_true", help="Only check that the pictures exist.")
    options = parser.parse_args()
    if not options.check:
        if options.key is None:
            parser.error("--key is needed, unless with --check")
        pictures = asyncio.run(make(options.url, options.key))
        FOLDER.mkdir(exist_ok=True)
        for path in FOLDER.iterdir():
            if path.name not in pictures:
                path.unlink()
        for name, data in pictures.items():
            (FOLDER / name).write_bytes(data)
    problems = check()
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        sizes = [path.stat().st_size for path in FOLDER.iterdir()]
        print(f"{len(sizes)} pictures, {sum(sizes)} bytes")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
