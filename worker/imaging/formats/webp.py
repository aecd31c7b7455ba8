"""WebP, and its animations."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pyvips

from service.images.probe import Rejected
from worker.imaging.containers.riff import MAX_CHUNKS, chunks
from worker.imaging.formats.animations import open_frames, probe_frames
from worker.imaging.formats.format import (
    DecodedPicture,
    Format,
    FrameSelection,
    Original,
    decode_picture,
    original_from,
)
from worker.imaging.formats.source import Source
from worker.imaging.location_removal.webp import blank_webp
from worker.imaging.small_copy import SMALL_PX


def probe(source: Source) -> DecodedPicture:
    frames = _count_frames(source.fd)
    source.check_size(1, 1, frames)
    load = _loader(source)
    image = load(n=-1)
    if image.height != frames * image.get_page_height():  # libwebp skips a frame that it cannot read
        raise Rejected("damaged-image")
    if image.height != image.get_page_height():
        picture = probe_frames(source, image, load_pages=lambda pages: load(n=pages))
        return replace(picture, has_alpha=_declares_alpha(source.fd))
    width, height = image.width, image.height
    source.check_size(width, height)
    scale = max(SMALL_PX / max(width, height), 1 / min(width, height))
    if scale < 0.5:  # libwebp's own scaling also decodes the whole file, in half the time
        image = load(scale=scale)
    return decode_picture(image, width, height)


def open_original(source: Source, selection: FrameSelection) -> Original:
    pages = _count_frames(source.fd)
    source.check_size(1, 1, pages)
    load = _loader(source)
    image = load()
    if pages > 1:
        return open_frames(source, image, load, selection, pages=pages, keeps_alpha=_declares_alpha(source.fd))
    width, height = image.width, image.height
    source.check_size(width, height)

    def load_scaled(scale: float) -> pyvips.Image:
        # libwebp scales by averages. At twice the size no detail that is needed is lost.
        return load(scale=2 * scale) if scale < 0.25 and min(width, height) * scale >= 1 else image

    return original_from(image, load=load_scaled)


def _loader(source: Source) -> Callable[..., pyvips.Image]:
    return partial(source.load, pyvips.Image.webpload_source, fail_on="truncated", access="sequential")


def _count_frames(fd: int) -> int:
    """Returns the number of frames, 1 for a still picture. libwebp counts them itself in quadratic time."""
    head = os.pread(fd, 21, 0)
    if head[12:16] != b"VP8X" or len(head) < 21 or not head[20] & 0x02:
        return 1
    frames = 0
    end = 8 + int.from_bytes(head[4:8], "little")
    for number, (kind, start, _) in enumerate(chunks(partial(os.pread, fd))):
        if number == MAX_CHUNKS:
            raise Rejected("damaged-image")
        if start > end:  # data after the picture does not belong to it
            break
        frames += kind == b"ANMF"
    return frames


def _declares_alpha(fd: int) -> bool:
    """Returns the alpha flag of an extended WebP. libvips adds an alpha band to every animation."""
    head = os.pread(fd, 21, 0)
    return head[12:16] == b"VP8X" and bool(head[20] & 0x10)


FORMAT = Format("webp", ("WebpSource", "WebpBuffer"), probe, open_original, blank_webp)
