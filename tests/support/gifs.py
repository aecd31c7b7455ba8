"""Builds GIFs of a few coloured pixels block by block, and shows decoded pixels as letters."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pyvips

COLOURS = {"r": (255, 0, 0), "g": (0, 255, 0), "b": (0, 0, 255), "y": (255, 255, 0)}
RED, GREEN, BLUE, YELLOW = range(4)
_LETTERS = {(*colour, 255): letter for letter, colour in COLOURS.items()} | {(0, 0, 0, 0): ".", (0, 0, 0, 255): "K"}


def gif(screen: tuple[int, int], *frames: bytes, palette: Sequence[tuple[int, ...]] = tuple(COLOURS.values())) -> bytes:
    """Returns a GIF. Its background colour is blue, which browsers do not show."""
    flags, table = _table(palette)
    return b"GIF89a" + struct.pack("<HHBBB", *screen, flags, BLUE, 0) + table + b"".join(frames) + b";"


def frame(
    left: int,
    top: int,
    width: int,
    height: int,
    pixels: int | Sequence[int] = GREEN,
    *,
    disposal: int = 0,
    transparent: int | None = None,
    interlaced: bool = False,
    palette: Sequence[tuple[int, ...]] = (),
) -> bytes:
    """Returns a frame. `pixels` are colour indexes of 2 bits, or one index for all pixels."""
    indexes = [pixels] * (width * height) if isinstance(pixels, int) else pixels
    control = struct.pack("<BHB", disposal << 2 | (transparent is not None), 10, transparent or 0)
    flags, table = _table(palette)
    image = struct.pack("<HHHHB", left, top, width, height, flags | 0x40 * interlaced)
    return b"\x21\xf9\x04" + control + b"\0\x2c" + image + table + lzw(indexes)


def lzw(indexes: Sequence[int]) -> bytes:
    """Returns LZW data with one code of 3 bits per index. Frequent clear codes (4) keep the codes at 3 bits."""
    codes = [code for at, index in enumerate(indexes) for code in ([4, index] if at % 2 == 0 else [index])]
    bits = sum(code << 3 * at for at, code in enumerate([*codes, 5]))
    data = bits.to_bytes((3 * len(codes) + 10) // 8, "little")
    pieces = [data[at : at + 255] for at in range(0, len(data), 255)]
    return b"\2" + b"".join(bytes([len(piece)]) + piece for piece in pieces) + b"\0"


def _table(palette: Sequence[tuple[int, ...]]) -> tuple[int, bytes]:
    if not palette:
        return 0, b""
    size = max(0, (len(palette) - 1).bit_length() - 1)
    return 0x80 | size, b"".join(map(bytes, palette)).ljust(3 * (2 << size), b"\0")


def letters(image: pyvips.Image) -> str:
    """Returns one letter per pixel, with spaces between the rows."""
    if image.bands == 3:
        image = image.bandjoin(255)
    data = bytes(image.write_to_memory())
    pixels = [_LETTERS.get((*data[at : at + 4],), "?") for at in range(0, len(data), 4)]
    return " ".join("".join(pixels[at : at + image.width]) for at in range(0, len(pixels), image.width))
