"""Pictures of several frames. libvips loads them as one tall image, the frames below each other."""

from __future__ import annotations

from collections.abc import Callable

import pyvips

from worker.imaging.formats.format import (
    Animation,
    DecodedPicture,
    FrameSelection,
    Original,
    decode_picture,
    original_from,
)
from worker.imaging.formats.source import Source
from worker.imaging.vips import fetch_lines

# Pixels that a probe decodes after the first frame: 0.1 s of a GIF, 0.4 s of a WebP. Whether an animation is complete
# is already known from its blocks.
MAX_CHECKED_PIXELS = 10_000_000

# The delay of a frame that has none in the file, as in browsers.
_DEFAULT_DELAY_MS = 100


def probe_frames(
    source: Source,
    image: pyvips.Image,
    *,
    checked_pixels: int = MAX_CHECKED_PIXELS,
    load_pages: Callable[[int], pyvips.Image] | None = None,
) -> DecodedPicture:
    """Probes all frames of `image`, where they are below each other.

    The first frame is used for the preview. The next ones are decoded, up to `checked_pixels`, to check that they are
    not damaged. `load_pages` opens a number of frames, for a loader that decodes all frames of an image.
    """
    height = image.get_page_height()
    pages = image.height // height
    source.check_size(image.width, height, pages)
    if pages == 1:
        return decode_picture(image, image.width, height)
    checked = min(pages, 1 + checked_pixels // (image.width * height))
    region = pyvips.Region.new(image if load_pages is None else load_pages(checked))
    first = fetch_lines(region, image, height)
    for page in range(1, checked):
        region.fetch(0, page * height, image.width, height)
    return decode_picture(image, image.width, height, pages=pages, first=first)


def open_frames(
    source: Source,
    image: pyvips.Image,
    load: Callable[..., pyvips.Image],
    selection: FrameSelection,
    *,
    pages: int,
    keeps_alpha: bool = True,
) -> Original:
    """Returns the selected frames. `image` is the first frame. `load` takes either `page`, the index of a frame, or
    `n`, the number of frames.
    """
    if selection.number is not None:
        image = load(page=min(selection.number, pages) - 1)
    if selection.number is not None or not selection.all or pages == 1:
        source.check_size(image.width, image.height)
        return original_from(image, keeps_alpha=keeps_alpha)
    source.check_size(image.width, image.height, pages)
    delays = image.get("delay") if image.get_typeof("delay") else []
    delays = [*delays[:pages], *[_DEFAULT_DELAY_MS] * (pages - len(delays))]
    loop = image.get("loop") if image.get_typeof("loop") else 0
    return original_from(image, load=lambda _: load(n=-1), keeps_alpha=keeps_alpha, animation=Animation(delays, loop))
