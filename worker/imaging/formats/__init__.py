"""The formats of pictures, one module each, and the setup that limits libvips to their loaders."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pi_heif
import pyvips

from service.images.probe import Rejected
from service.media_types import HEAD_BYTES, sniff
from worker.imaging.containers.svg import is_svg
from worker.imaging.formats import avif, gif, heic, jpeg, png, svg, tiff, webp
from worker.imaging.formats.format import Format, FrameSelection, Original
from worker.imaging.formats.source import File, open_source
from worker.imaging.unsupported import name_kind

FORMATS: dict[str, Format] = {
    module.FORMAT.name: module.FORMAT for module in (jpeg, png, webp, gif, avif, tiff, heic, svg)
}


def prepare() -> None:
    """Sets up libvips and libheif for untrusted files, once per process: only our loaders, one thread, no cache."""
    pyvips.operation_block_set("VipsForeignLoad", True)
    for picture_format in FORMATS.values():
        for loader in picture_format.loaders:
            pyvips.operation_block_set(f"VipsForeignLoad{loader}", False)
    pyvips.cache_set_max(0)
    pyvips.concurrency_set(1)
    logging.getLogger("pyvips").setLevel(logging.CRITICAL)  # warnings about files, which get an error code instead
    pi_heif.options.DECODE_THREADS = 1


def detect_format(fd: int) -> Format:
    """Returns the format by the file's first bytes or its root element. Raises Rejected if it is none of FORMATS."""
    head = os.pread(fd, HEAD_BYTES, 0)
    name = sniff(head)
    if name is None and is_svg(fd):
        name = svg.FORMAT.name
    if name is None:
        raise Rejected("unsupported-image", name_kind(head))
    return FORMATS[name]


@contextmanager
def open_original(file: File, max_pixels: int, selection: FrameSelection) -> Iterator[Original]:
    """Opens a picture for a rendition. Raises what `open_source` does, also if a decoder fails inside the block."""
    with open_source(file, max_pixels) as source:
        yield detect_format(source.fd).open_original(source, selection)
