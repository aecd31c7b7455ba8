"""Pictures of several frames, which libvips shows as one tall image, the frames below each other."""

from __future__ import annotations

from collections.abc import Callable

import pyvips

from worker.imaging.formats.original import Animation, Frames, Original, original_of
from worker.imaging.formats.picture import Picture, picture_of
from worker.imaging.formats.source import Source
from worker.imaging.pixels import fetch

# Pixels of an animation that are decoded beyond its first frame: 0.1 s of a GIF, 0.4 s of a WebP. That it is complete
# is known without, from its blocks.
FRAMES_PIXELS = 10_000_000

# Of an animation whose delays nobody told, in ms; as browsers have it.
_DELAY_MS = 100


def probe_frames(
    source: Source,
    image: pyvips.Image,
    *,
    checked_pixels: int = FRAMES_PIXELS,
    load_some: Callable[[int], pyvips.Image] | None = None,
) -> Picture:
    """Of all frames as one tall image. The first is kept; others are decoded to see that they can be, as long as they
    are within `checked_pixels`. `load_some` opens so many of them, for a loader that decodes all that were asked for.
    """
    height = image.get_page_height()
    pages = image.height // height
    source.admit(image.width, height, pages)
    if pages == 1:
        return picture_of(image, image.width, height)
    checked = min(pages, 1 + checked_pixels // (image.width * height))
    region = pyvips.Region.new(image if load_some is None else load_some(checked))
    first = fetch(region, image, height)
    for page in range(1, checked):
        region.fetch(0, page * height, image.width, height)
    return picture_of(image, image.width, height, pages=pages, first=first)


def open_frames(
    source: Source,
    image: pyvips.Image,
    load: Callable[..., pyvips.Image],
    which: Frames,
    *,
    pages: int,
    keeps_alpha: bool = True,
) -> Original:
    """`image` is the first of them; `load` takes the options `page`, one by its place, or `n`, so many of them."""
    if which.number is not None:
        image = load(page=min(which.number, pages) - 1)
    if which.number is not None or not which.all or pages == 1:
        source.admit(image.width, image.height)
        return original_of(image, keeps_alpha=keeps_alpha)
    source.admit(image.width, image.height, pages)
    delays = image.get("delay") if image.get_typeof("delay") else []
    delays = [*delays[:pages], *[_DELAY_MS] * (pages - len(delays))]
    loop = image.get("loop") if image.get_typeof("loop") else 0
    return original_of(image, load=lambda _: load(n=-1), keeps_alpha=keeps_alpha, animation=Animation(delays, loop))
