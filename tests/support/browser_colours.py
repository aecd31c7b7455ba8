"""What Chromium shows of the samples in `tests.support.colours`: writes `tests/support/chromium.py`.

    python -m tests.support.browser_colours [CHROMIUM]

A page of all of them is opened without a window, on a screen of sRGB, and the middle of each patch is read from a
picture of the screen.
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


def show(samples: dict[str, bytes], chromium: str) -> dict[str, list[tuple[int, ...]]]:
    width, height = colours.SIZE
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        images = []
        for number, data in enumerate(samples.values()):
            name = f"{number}.{_SUFFIXES.get(data[:4], 'avif')}"
            (folder / name).write_bytes(data)
            images.append(f'<img src="{name}" width="{width}" height="{height}" decoding="sync">')
        page, screen = folder / "page.html", folder / "screen.png"
        page.write_text(f"<!doctype html><style>{_STYLE}</style>{''.join(images)}")
        size = f"--window-size={max(width, 500)},{height * len(samples)}"
        options = [*OPTIONS, size, f"--screenshot={screen}", f"--user-data-dir={folder / 'user'}"]
        subprocess.run([chromium, *options, page.as_uri()], check=True, capture_output=True, timeout=120)
        with Image.open(screen) as shown:
            tops = range(0, height * len(samples), height)
            return {
                name: colours.patches(shown.crop((0, top, width, top + height)))
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
        "SHOWN = {",
    ]
    for name, patches in show(colours.samples(), chromium).items():
        lines.append(f'    "{name}": "{" ".join(bytes(patch).hex() for patch in patches)}",')
    RESULT.write_text("\n".join([*lines, "}", ""]))


if __name__ == "__main__":
    main()
