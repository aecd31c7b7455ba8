"""One probe of one file."""

from __future__ import annotations

from service.images.probe import Probe
from worker.imaging.formats import FORMATS, recognise
from worker.imaging.formats.source import File, open_source
from worker.imaging.preview import encode_preview


def probe(file: File, *, max_pixels: int) -> Probe:
    """Decode the whole picture once and say what it is.

    `max_pixels` bounds width x height x pages, by the header, before any pixel is decoded. Raises `Rejected` with
    `unsupported-image`, `damaged-image`, `too-many-pixels` or `probe-failed`, and OSError where the file cannot be
    read.
    """
    with open_source(file, max_pixels) as source:
        form = recognise(source)
        picture = FORMATS[form].probe(source)
    turned = picture.orientation >= 5
    return Probe(
        format=form,
        width=picture.height if turned else picture.width,
        height=picture.width if turned else picture.height,
        orientation=picture.orientation if picture.applied_orientation == 1 else picture.applied_orientation,
        pages=picture.pages,
        has_alpha=picture.has_alpha,
        exif=picture.exif,
        mini_preview=encode_preview(picture),
    )
