"""One probe of one file."""

from __future__ import annotations

import os
from pathlib import Path

import pyvips

from service.probes import Probe, Rejected
from worker.imaging import loaders
from worker.imaging.preview import encode_preview
from worker.imaging.sniffing import HEAD_BYTES, sniff


def probe(path: str, *, max_pixels: int) -> Probe:
    """Decode the whole picture once and say what it is.

    `max_pixels` bounds width x height x pages, by the header, before any pixel is decoded. Raises `Rejected` with
    `unsupported-image`, `damaged-image`, `too-many-pixels` or `probe-failed`, and OSError where the file cannot be
    read.
    """
    # What a picture before this one left there without failing would be read as a message about this one.
    pyvips.vips_lib.vips_error_clear()
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        form, picture = _load(loaders.Source(path, fd, max_pixels))
    except Rejected:
        Path(path).stat()  # FileNotFoundError if it was moved before a decoder opened it: not the picture's fault
        raise
    finally:
        os.close(fd)
    turned = picture.orientation >= 5
    return Probe(
        format=form,
        width=picture.height if turned else picture.width,
        height=picture.width if turned else picture.height,
        orientation=picture.orientation,
        pages=picture.pages,
        has_alpha=picture.has_alpha,
        exif=picture.exif,
        mini_preview=encode_preview(picture),
    )


def _load(source: loaders.Source) -> tuple[str, loaders.Picture]:
    form = sniff(os.pread(source.fd, HEAD_BYTES, 0))
    if form is None:
        raise Rejected("unsupported-image")
    try:
        return form, loaders.LOADERS[form](source)
    except pyvips.Error as error:
        raise Rejected("damaged-image") from error
    except UnicodeDecodeError as error:
        # libvips's message repeats bytes of the file, and pyvips takes them for UTF-8 before it empties the buffer.
        pyvips.vips_lib.vips_error_clear()
        raise Rejected("damaged-image") from error
