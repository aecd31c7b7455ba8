"""libvips and libheif, set up once a process."""

from __future__ import annotations

import logging

import pi_heif
import pyvips


def prepare() -> None:
    """Set libvips up for untrusted files, once a process: only the loaders used here, one thread, nothing cached."""
    pyvips.operation_block_set("VipsForeignLoad", True)
    for loader in (
        "JpegSource",
        "JpegBuffer",
        "PngSource",
        "PngBuffer",
        "WebpSource",
        "WebpBuffer",
        "HeifSource",
        "HeifBuffer",
        "TiffSource",
        "TiffBuffer",
        "SvgBuffer",
    ):
        pyvips.operation_block_set(f"VipsForeignLoad{loader}", False)
    pyvips.cache_set_max(0)
    pyvips.concurrency_set(1)
    logging.getLogger("pyvips").setLevel(logging.CRITICAL)  # libvips's warnings about files: we answer with a code
    pi_heif.options.DECODE_THREADS = 1
    pi_heif.options.THUMBNAILS = False
    pi_heif.options.DEPTH_IMAGES = False
    pi_heif.options.AUX_IMAGES = False
