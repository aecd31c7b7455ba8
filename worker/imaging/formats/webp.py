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
from worker.imaging.formats.original import Frames, Original, original_of
from worker.imaging.formats.picture import Picture, picture_of
from worker.imaging.formats.source import Source
from worker.imaging.pixels import SMALL_PX


def probe(source: Source) -> Picture:
    frames = _count_frames(source.fd)
    source.admit(1, 1, frames)
    load = _loader(source)
    image = load(n=-1)
    if image.height != frames * image.get_page_height():  # libwebp leaves out a frame that it cannot read
        raise Rejected("damaged-image")
    if image.height != image.get_page_height():
        picture = probe_frames(source, image, load_some=lambda pages: load(n=pages))
        return replace(picture, has_alpha=_says_alpha(source.fd))
    width, height = image.width, image.height
    source.admit(width, height)
    scale = max(SMALL_PX / max(width, height), 1 / min(width, height))
    if scale < 0.5:  # libwebp's own scaling reads all the file too, in half the time
        image = load(scale=scale)
    return picture_of(image, width, height)


def open_original(source: Source, which: Frames) -> Original:
    pages = _count_frames(source.fd)
    source.admit(1, 1, pages)
    load = _loader(source)
    image = load()
    if pages > 1:
        return open_frames(source, image, load, which, pages=pages, keeps_alpha=_says_alpha(source.fd))
    width, height = image.width, image.height
    source.admit(width, height)

    def load_scaled(scale: float) -> pyvips.Image:
        # libwebp scales by averages, which keep all that is needed at twice the size.
        return load(scale=2 * scale) if scale < 0.25 and min(width, height) * scale >= 1 else image

    return original_of(image, load=load_scaled)


def _loader(source: Source) -> Callable[..., pyvips.Image]:
    return partial(source.decode, pyvips.Image.webpload_source, fail_on="truncated", access="sequential")


def _count_frames(fd: int) -> int:
    """Frames of a WebP; 1 where it is no animation. libwebp's own count takes a time that grows with their square."""
    head = os.pread(fd, 21, 0)
    if head[12:16] != b"VP8X" or len(head) < 21 or not head[20] & 0x02:
        return 1
    frames = 0
    end = 8 + int.from_bytes(head[4:8], "little")
    for number, (kind, start, _) in enumerate(chunks(partial(os.pread, fd))):
        if number == MAX_CHUNKS:
            raise Rejected("damaged-image")
        if start > end:  # what lies behind the picture is none of it
            break
        frames += kind == b"ANMF"
    return frames


def _says_alpha(fd: int) -> bool:
    """The flag of an extended WebP. libvips gives every animation an alpha band."""
    head = os.pread(fd, 21, 0)
    return head[12:16] == b"VP8X" and bool(head[20] & 0x10)
