"""GIF, and its animations."""

from __future__ import annotations

import mmap
import struct

from service.images.probe import MAX_PAGES, Rejected
from worker.imaging.containers.gif import Frame, Gif, read_gif
from worker.imaging.formats.animations import MAX_CHECKED_PIXELS
from worker.imaging.formats.format import Animation, DecodedPicture, Format, FrameSelection, Original, decode_picture
from worker.imaging.formats.gif_canvas import Canvas
from worker.imaging.formats.source import Source
from worker.imaging.location_removal.gif import blank_gif


def probe(source: Source) -> DecodedPicture:
    gif, canvas = _open(source)
    _check_size(source, gif, gif.frames)
    _check_frames(gif, canvas)
    return decode_picture(canvas.first(), gif.width, gif.height, pages=len(gif.frames))


def open_original(source: Source, selection: FrameSelection) -> Original:
    gif, canvas = _open(source)
    pages = len(gif.frames)
    if selection.all and selection.number is None and pages > 1:
        _check_size(source, gif, gif.frames)
        animation = Animation([frame.control.delay_ms for frame in gif.frames], gif.loop, canvas.frames)
        return Original(gif.width, gif.height, lambda _: canvas.first(), animation=animation)
    number = min(selection.number or 1, pages) - 1
    for frame in gif.frames[: number + 1]:
        _check_size(source, gif, [frame])
    return Original(gif.width, gif.height, lambda _: canvas.frame(number))


def _open(source: Source) -> tuple[Gif, Canvas]:
    """Opens a GIF. Raises Rejected if it has no frames, or ends inside a block."""
    data = mmap.mmap(source.fd, 0, access=mmap.ACCESS_READ)
    try:
        gif = read_gif(data, max_frames=MAX_PAGES)
    except (IndexError, struct.error) as error:
        raise Rejected("damaged-image") from error
    if not gif.frames or 0 in {gif.width, gif.height}:
        raise Rejected("damaged-image")
    source.check_size(1, 1, len(gif.frames))
    return gif, Canvas(data, gif)


def _check_size(source: Source, gif: Gif, frames: list[Frame]) -> None:
    """Checks the pixels of frames too, because frames may be larger than the screen."""
    source.check_size(gif.width, gif.height, len(frames))
    source.check_size(sum(frame.width * frame.height for frame in frames), 1)


def _check_frames(gif: Gif, canvas: Canvas) -> None:
    """Decodes the frames after the first one, up to MAX_CHECKED_PIXELS, to check that they are not damaged."""
    pixels_left = MAX_CHECKED_PIXELS
    for frame in gif.frames[1:]:
        pixels_left -= frame.width * frame.height
        if pixels_left < 0:
            break
        canvas.decode(frame)


FORMAT = Format("gif", (), probe, open_original, blank_gif)  # decoded by Pillow
