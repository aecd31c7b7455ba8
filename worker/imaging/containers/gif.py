"""Parses the blocks of a GIF (GIF89a): the screen, and the position of each frame on it."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from worker.file_headers import gif_size

_IMAGE, _EXTENSION = 0x2C, 0x21
_GRAPHIC_CONTROL = b"\x21\xf9"
_LOOP = (b"\x21\xff\x0bNETSCAPE2.0\x03\x01", b"\x21\xff\x0bANIMEXTS1.0\x03\x01")

# Disposal methods. Browsers treat 4 like 3, and 5 to 7 like "keep".
BACKGROUND = 2
PREVIOUS = frozenset({3, 4})

Bytes = mmap.mmap | bytearray | bytes
Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Control:
    """A graphic control extension: how to show the next frame."""

    disposal: int = 0
    delay_ms: int = 0
    transparent: int | None = None


@dataclass(frozen=True, slots=True)
class Frame:
    """`palette` is RGB, up to 256 colours. The LZW data are from `start` (the minimum code size) to `end`."""

    left: int
    top: int
    width: int
    height: int
    interlaced: bool
    palette: bytes
    control: Control
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Gif:
    """`loop` is how many times the animation plays, 0 for infinitely."""

    width: int
    height: int
    frames: list[Frame]
    loop: int

    def box(self, frame: Frame) -> Box | None:
        """Returns the part of the screen that the frame covers: left, top, right, bottom. None if it is outside."""
        right, bottom = min(frame.left + frame.width, self.width), min(frame.top + frame.height, self.height)
        return (frame.left, frame.top, right, bottom) if frame.left < right and frame.top < bottom else None

    @property
    def has_alpha(self) -> bool:
        """Whether any pixel of any frame may be transparent. A transparent colour is assumed to be used."""
        screen = (0, 0, self.width, self.height)
        opaque = False
        for frame in self.frames:
            before = opaque
            opaque = opaque or (frame.control.transparent is None and self.box(frame) == screen)
            if not opaque:
                return True
            if frame.control.disposal == BACKGROUND and self.box(frame) is not None:
                opaque = False
            elif frame.control.disposal in PREVIOUS:
                opaque = before
        return False


def read_gif(data: Bytes, *, max_frames: int) -> Gif:
    """Reads all frames, at most one more than `max_frames`.

    The screen is enlarged to hold the first frame, as in browsers; later frames are cut off at the screen. Raises
    IndexError or struct.error if the file ends inside a block. Only the trailer may be missing: such files exist, and
    have all pixels.
    """
    width, height = gif_size(data[:10])
    global_palette = data[13 : 13 + _colour_table_bytes(data[10])]
    control, loop = Control(), 1
    frames: list[Frame] = []
    for start, end in blocks(data):
        if data[start] == _IMAGE:
            frames.append(_read_frame(data, start, end, global_palette, control))
            control = Control()
            if len(frames) > max_frames:
                break
        elif data[start : start + 2] == _GRAPHIC_CONTROL and end - start >= 8:
            control = _read_control(data[start + 3 : start + 7])
        elif data[start : start + 16] in _LOOP:
            (repeats,) = struct.unpack("<H", data[start + 16 : start + 18])
            loop = repeats and repeats + 1
    if frames:
        width = max(width, frames[0].left + frames[0].width)
        height = max(height, frames[0].top + frames[0].height)
    return Gif(width, height, frames, loop)


def blocks(data: Bytes) -> Iterator[tuple[int, int]]:
    """Yields start and end of each image and extension, up to any other byte.

    Raises IndexError if the file ends inside a block.
    """
    at = 13 + _colour_table_bytes(data[10])
    while at < len(data):
        start = at
        if data[at] == _IMAGE:
            at += 11 + _colour_table_bytes(data[at + 9])
        elif data[at] == _EXTENSION:
            at += 2
        else:
            return
        while size := data[at]:
            at += size + 1
        at += 1
        yield start, at


def _read_control(fields: bytes | bytearray) -> Control:
    flags, delay, transparent = struct.unpack("<BHB", fields)
    return Control(flags >> 2 & 7, 10 * delay, transparent if flags & 1 else None)


def _read_frame(data: Bytes, start: int, end: int, global_palette: bytes | bytearray, control: Control) -> Frame:
    left, top, width, height, flags = struct.unpack("<HHHHB", data[start + 1 : start + 10])
    at = start + 10 + _colour_table_bytes(flags)
    palette = data[start + 10 : at] if flags & 0x80 else global_palette
    return Frame(left, top, width, height, bool(flags & 0x40), bytes(palette), control, at, end)


def _colour_table_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0
