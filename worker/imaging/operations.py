"""The operations of a decoder on a picture's file: probe, render, and find locations."""

from __future__ import annotations

import mmap
from contextlib import suppress

from service.images.probe import Probe, Rejected
from service.renditions.geometry import Size
from service.renditions.transformation import Transformation
from worker.imaging.formats import detect_format, open_original
from worker.imaging.formats.format import FrameSelection
from worker.imaging.formats.source import File, open_file, open_source
from worker.imaging.location_removal.regions import Copy, Patch, Unreadable
from worker.imaging.preview import encode_preview
from worker.imaging.rendering.encoding import encode
from worker.imaging.rendering.metadata import build_metadata
from worker.imaging.rendering.placing import place_frames
from worker.imaging.rendering.steps import apply_effects
from worker.imaging.rendering.watermarks import open_watermark


def probe(file: File, *, max_pixels: int) -> Probe:
    """Decodes the whole picture once, and returns its properties for the API.

    `max_pixels` bounds width x height x pages, by the header, before any pixel is decoded. Raises `Rejected` with
    `unsupported-image`, `damaged-image`, `too-many-pixels` or `probe-failed`, and OSError if the file cannot be read.
    """
    with open_source(file, max_pixels) as source:
        picture_format = detect_format(source.fd)
        picture = picture_format.probe(source)
    is_turned = picture.orientation >= 5
    return Probe(
        format=picture_format.name,
        width=picture.height if is_turned else picture.width,
        height=picture.width if is_turned else picture.height,
        orientation=picture.orientation if picture.applied_orientation == 1 else picture.applied_orientation,
        pages=picture.pages,
        has_alpha=picture.has_alpha,
        exif=picture.exif,
        mini_preview=encode_preview(picture),
    )


def render(file: File, transformation: Transformation, *, watermark: File | None, max_pixels: int) -> bytes:
    """Returns the bytes of a rendition. `watermark` is the file of the watermark's image; None means no watermark.

    `max_pixels` bounds what is decoded of either file. Raises `Rejected` with `unsupported-image`, `damaged-image`,
    `too-many-pixels`, `rendition-too-large` or `probe-failed`, and OSError if a file cannot be read.
    """
    selection = FrameSelection(transformation.frame, all=transformation.format in {"gif", "webp"})
    with open_original(file, max_pixels, selection) as original:
        frames = [apply_effects(frame, transformation) for frame in place_frames(original, transformation)]
        metadata = build_metadata(original, transformation)
    if transformation.watermark is not None and watermark is not None:
        size = Size(frames[0].width, frames[0].height)
        layer = open_watermark(watermark, transformation.watermark, size, max_pixels)
        frames = [layer.apply(frame) for frame in frames]
    return encode(frames, transformation, original.animation, metadata)


def find_locations(file: File) -> list[Patch]:
    """Returns patches that remove every location from the file's EXIF, XMP and IPTC, and nothing else.

    They keep pixels, length and other tags, are in the order of the file, and do not overlap. An unreadable structure
    is searched up to the error. Raises OSError if the file cannot be read, and Rejected for a compressed SVG that does
    not fit into its length without the locations.

    Not searched: maker notes, some of which have coordinates under a maker's own tags; free texts such as titles and
    comments; videos after a still picture; C2PA manifests; and pictures inside an SVG.
    """
    with open_file(file) as fd:
        try:
            picture_format = detect_format(fd)
        except Rejected:
            return []
        # Writes go to pages of this process alone.
        with mmap.mmap(fd, 0, access=mmap.ACCESS_COPY) as data:
            copy = Copy(data)
            with suppress(Unreadable):
                picture_format.blank_locations(copy)
            return copy.patches()
