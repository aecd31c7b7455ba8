"""Makes the picture at the top of README.md with requests to a running Daguerre.

Usage: `python -m bench.make_overview --url http://127.0.0.1:8080 --key KEY`. It shows the sample landscape three times:
its preview, enlarged and blurred like on a page; a rendition; and a crop by smart gravity.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
from pathlib import Path

import aiohttp
from PIL import Image, ImageFilter

_ROOT = Path(__file__).parents[1]
_PHOTOGRAPH = _ROOT / "service/launcher/embedded/sample.jpg"
FILE = _ROOT / "docs/overview.jpg"

_HEIGHT, _GAP = 213, 12
_BLUR_PIXELS = 6


async def _fetch(url: str, key: str) -> tuple[bytes, bytes, bytes]:
    """Returns the preview, the rendition and the crop."""
    async with aiohttp.ClientSession(url, headers={"X-Api-Key": key}, raise_for_status=True) as session:
        headers = {"Content-Type": "image/jpeg"}
        async with session.post(
            "/v1/images?with_mini_preview=true", data=_PHOTOGRAPH.read_bytes(), headers=headers
        ) as response:
            image = (await response.json())["response"]
        queries = ("width=320", f"width=160&height={_HEIGHT}&fit=cover&gravity=smart")
        renditions = []
        for query in queries:
            async with session.get(f"/i/{image['id']}?{query}&format=png") as response:
                renditions.append(await response.read())
    return base64.b64decode(image["mini_preview"]), renditions[0], renditions[1]


def _compose(preview: bytes, rendition: bytes, crop: bytes) -> Image.Image:
    pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in (preview, rendition, crop)]
    size = pictures[1].size
    pictures[0] = pictures[0].resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(_BLUR_PIXELS))
    width = sum(picture.width for picture in pictures) + 2 * _GAP
    composed = Image.new("RGB", (width, _HEIGHT), "white")
    left = 0
    for picture in pictures:
        composed.paste(picture, (left, 0))
        left += picture.width + _GAP
    return composed


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.make_overview", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="Address of Daguerre.")
    parser.add_argument("--key", required=True, help="An API key of the account that the picture is uploaded to.")
    arguments = parser.parse_args()
    preview, rendition, crop = asyncio.run(_fetch(arguments.url, arguments.key))
    _compose(preview, rendition, crop).save(FILE, quality=82)
    print(f"{FILE.relative_to(_ROOT)}: preview of {len(preview)} bytes")


if __name__ == "__main__":
    main()
