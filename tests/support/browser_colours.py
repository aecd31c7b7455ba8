"""Writes `tests/support/chromium.py`: the colours of the samples in `tests.support.colours` as Chromium shows them.

    python -m tests.support.browser_colours [CHROMIUM]

It opens a page with all samples in headless mode, with sRGB as the colour space of the screen, takes a screenshot, and
reads the pixel in the middle of each patch.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.support import colours

RESULT = Path(__file__).with_name("chromium.py")
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-color-profile=srgb")
_STYLE = "body { margin: 0; background: #fff } img { display: block; image-rendering: pixelated }"
_SUFFIXES = {b"\x89PNG": "png", b"\xff\xd8\xff\xe0": "jpg", b"RIFF": "webp"}


def take_colours(samples: dict[str, bytes], chromium: str) -> dict[str, list[tuple[int, ...]]]:
    """Returns the colours of the patches of each sample."""
    width, height = colours.SIZE
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images = []
        for number, data in enumerate(samples.values()):
            name = f"{number}.{_SUFFIXES.get(data[:4], 'avif')}"
            (folder / name).write_bytes(data)
            images.append(f'<img src="{name}" width="{width}" height="{height}" decoding="sync">')
        page, screenshot = folder / "page.html", folder / "screen.png"
        page.write_text(f"<!doctype html><style>{_STYLE}</style>{''.join(images)}")
        size = f"--window-size={max(width, 500)},{height * len(samples)}"
        options = [*OPTIONS, size, f"--screenshot={screenshot}", f"--user-data-dir={folder / 'user'}"]
        subprocess.run([chromium, *options, page.as_uri()], check=True, capture_output=True, timeout=120)
        with Image.open(screenshot) as image:
            tops = range(0, height * len(samples), height)
            return {
                name: colours.patches(image.crop((0, top, width, top + height)))
                for name, top in zip(samples, tops, strict=True)
            }


def main() -> None:
    chromium = sys.argv[1] if len(sys.argv) > 1 else "chromium"
    version = subprocess.run([chromium, "--version"], check=True, capture_output=True, text=True).stdout.strip()
    lines = [
        '"""Colours of the samples in `tests.support.colours` as Chromium shows them, RGB per patch.',
        "",
        f"{version}.",
        "Hexadecimal; written by `python -m tests.support.browser_colours`.",
        '"""',
        "",
        "CHROMIUM_COLOURS = {",
    ]
    for name, patches in take_colours(colours.samples(), chromium).items():
        lines.append(f'    "{name}": "{" ".join(bytes(patch).hex() for patch in patches)}",')
    RESULT.write_text("\n".join([*lines, "}", ""]))


if __name__ == "__main__":
    main()
