"""One rendition of one picture."""

from __future__ import annotations

from service.renditions.geometry import Size
from service.renditions.transformation import Transformation
from worker.imaging.formats.original import Frames
from worker.imaging.formats.source import File
from worker.imaging.rendering import metadata
from worker.imaging.rendering.encoding import encode
from worker.imaging.rendering.opening import opened
from worker.imaging.rendering.placing import placed_frames
from worker.imaging.rendering.steps import finish
from worker.imaging.rendering.watermarks import open_mark


def render(file: File, transformation: Transformation, *, watermark: File | None, max_pixels: int) -> bytes:
    """The picture as asked. `watermark` is the file of the watermark's image; without one there is none.

    `max_pixels` bounds what is decoded of either file. Raises `Rejected` with `unsupported-image`, `damaged-image`,
    `too-many-pixels`, `rendition-too-large` or `probe-failed`, and OSError where a file cannot be read.
    """
    asked = transformation
    which = Frames(asked.frame, all=asked.format in {"gif", "webp"})
    with opened(file, max_pixels, which) as original:
        frames = [finish(frame, asked) for frame in placed_frames(original, asked)]
        said = metadata.choose(original, asked)
    if asked.watermark is not None and watermark is not None:
        mark = open_mark(watermark, asked.watermark, Size(frames[0].width, frames[0].height), max_pixels)
        frames = [mark.lay_on(frame) for frame in frames]
    return encode(frames, asked, original.animation, said)
