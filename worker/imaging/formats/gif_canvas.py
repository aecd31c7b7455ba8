"""The frames of a GIF as browsers show them: each is drawn over what earlier frames left on the canvas.

Pillow's LZW decoder takes 8 ms per million pixels; libnsgif, which libvips uses, takes 12. libnsgif cannot draw the
canvas either: it ignores the screen's size if that is a common one, e.g. 640 x 480, and fills with the background.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pyvips
from PIL import Image

from service.images.probe import Rejected
from worker.imaging.containers.gif import BACKGROUND, PREVIOUS, Bytes, Frame, Gif

_TRANSPARENT = (0, 0, 0, 0)


class Canvas:
    """The canvas of a GIF whose size was checked."""

    def __init__(self, data: Bytes, gif: Gif) -> None:
        self._data = data
        self._gif = gif
        self._has_alpha = gif.has_alpha

    def first(self) -> pyvips.Image:
        """Returns the first frame on the screen. Its colours are looked up when pixels are fetched.

        Raises Rejected if it is damaged.
        """
        gif, frame = self._gif, self._gif.frames[0]
        box = gif.box(frame)
        if box is None:
            return pyvips.Image.black(gif.width, gif.height, bands=4).copy(interpretation="srgb")
        pixels = self.decode(frame).tobytes()
        indexes = pyvips.Image.new_from_memory(pixels, frame.width, frame.height, 1, "uchar")
        image = indexes.maplut(_colour_table(frame, 4 if self._has_alpha else 3))
        if box != (0, 0, gif.width, gif.height):
            image = image.embed(frame.left, frame.top, gif.width, gif.height)
        return image.copy(interpretation="srgb")

    def frame(self, number: int) -> pyvips.Image:
        """Returns one frame by its index; the first is 0."""
        if number == 0:
            return self.first()
        for index, canvas in enumerate(self._compose()):
            if index == number:
                return self._to_image(canvas)
        raise IndexError(number)

    def frames(self) -> Iterator[pyvips.Image]:
        """Yields all frames; one at a time is in memory."""
        return map(self._to_image, self._compose())

    def decode(self, frame: Frame) -> Image.Image:
        """Returns the colour indexes of a frame as stored. Raises Rejected if any are missing."""
        size = (frame.width, frame.height)
        codes = self._data[frame.start + 1 : frame.end]
        try:
            return Image.frombytes("P", size, codes, "gif", (self._data[frame.start], frame.interlaced, -1))
        except ValueError as error:
            raise Rejected("damaged-image") from error

    def _compose(self) -> Iterator[Image.Image]:
        """Yields the same image repeatedly, each time with one more frame.

        A damaged frame is skipped: a probe decodes only the first frames, and a picture that it accepted must be shown.
        """
        canvas = Image.new("RGBA", (self._gif.width, self._gif.height))
        for frame in self._gif.frames:
            box, disposal = self._gif.box(frame), frame.control.disposal
            if box is None:
                yield canvas
                continue
            before = canvas.crop(box) if disposal in PREVIOUS else None
            with suppress(Rejected):
                self._draw(canvas, frame)
            yield canvas
            if disposal == BACKGROUND:
                canvas.paste(_TRANSPARENT, box)
            elif before is not None:
                canvas.paste(before, box)

    def _draw(self, canvas: Image.Image, frame: Frame) -> None:
        image = self.decode(frame)
        image.putpalette(_colours(frame, 4), "RGBA")
        image = image.convert("RGBA")
        canvas.paste(image, (frame.left, frame.top), None if frame.control.transparent is None else image)

    def _to_image(self, canvas: Image.Image) -> pyvips.Image:
        image = pyvips.Image.new_from_memory(canvas.tobytes(), *canvas.size, 4, "uchar")
        image = image if self._has_alpha else image.extract_band(0, n=3)
        return image.copy(interpretation="srgb")


def _colour_table(frame: Frame, bands: int) -> pyvips.Image:
    return pyvips.Image.new_from_memory(_colours(frame, bands), 256, 1, bands, "uchar")


def _colours(frame: Frame, bands: int) -> bytes:
    """Returns the colours of all 256 indexes, 3 or 4 bytes each. Those beyond the palette are black, as in browsers."""
    palette = frame.palette.ljust(768, b"\0")
    if bands == 3:
        return palette
    table = bytearray(b"\xff" * 1024)
    for band in range(3):
        table[band::4] = palette[band::3]
    if frame.control.transparent is not None:
        at = 4 * frame.control.transparent
        table[at : at + 4] = bytes(4)
    return bytes(table)
