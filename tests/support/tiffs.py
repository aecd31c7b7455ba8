"""Builds TIFFs with any kind of sample, tag by tag (TIFF 6.0)."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _STRIP = 256, 257, 258, 259, 262, 273
_COUNT, _ROWS, _STRIP_BYTES, _PLANAR, _EXTRA, _FORMAT = 277, 278, 279, 284, 338, 339
COLOUR_MAP, TILE_WIDTH, TILE_HEIGHT, TILE, TILE_BYTES, SUBSAMPLING, BLACK_WHITE = 320, 322, 323, 324, 325, 530, 532

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, MASK, CMYK, YCBCR, _, CIELAB, ICCLAB = range(10)
UNSIGNED, SIGNED, FLOAT, _UNTYPED, COMPLEX = range(1, 6)
UNSPECIFIED, ASSOCIATED, UNASSOCIATED = range(3)

Rational = tuple[int, int]


def tiff(
    size: tuple[int, int],
    data: bytes,
    *,
    photometric: int,
    samples: int = 1,
    bits: int | Sequence[int] = 8,
    extra: Sequence[int] = (),
    form: int = UNSIGNED,
    planar: bool = False,
    order: str = "<",
    more: Mapping[int, Sequence[int] | Sequence[Rational]] | None = None,
) -> bytes:
    """Returns an uncompressed TIFF with `data` in one strip, one tile, or, if planar, one strip per sample.

    `more` are additional tags.
    """
    strips = samples if planar else 1
    offsets, lengths = [8 + i * (len(data) // strips) for i in range(strips)], [len(data) // strips] * strips
    tags: dict[int, Sequence[int] | Sequence[Rational]] = {
        _WIDTH: [size[0]],
        _HEIGHT: [size[1]],
        _BITS: [bits] * samples if isinstance(bits, int) else bits,
        _COMPRESSION: [1],
        _PHOTOMETRIC: [photometric],
        _COUNT: [samples],
        _PLANAR: [2 if planar else 1],
        _FORMAT: [form] * samples,
        **({_EXTRA: extra} if extra else {}),
        **(more or {}),
    }
    tags |= {TILE: offsets, TILE_BYTES: lengths} if TILE_WIDTH in tags else {_STRIP: offsets, _STRIP_BYTES: lengths}
    tags.setdefault(_ROWS, [size[1]])
    data += bytes(len(data) % 2)
    at = 8 + len(data)
    outside_at = at + 2 + 12 * len(tags) + 4
    table, outside = struct.pack(order + "H", len(tags)), b""
    for tag, values in sorted(tags.items()):
        packed, kind = _pack(values, order, wide=tag in {_STRIP, _STRIP_BYTES, TILE, TILE_BYTES})
        field = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack(order + "I", outside_at + len(outside))
        outside += packed if len(packed) > 4 else b""
        table += struct.pack(order + "HHI", tag, kind, len(values)) + field
    head = struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, at)
    return head + data + table + bytes(4) + outside


def _pack(values: Sequence[int] | Sequence[Rational], order: str, *, wide: bool) -> tuple[bytes, int]:
    numbers = [number for value in values for number in (value if isinstance(value, tuple) else (value,))]
    if len(numbers) > len(values):
        return struct.pack(f"{order}{len(numbers)}I", *numbers), 5
    return struct.pack(f"{order}{len(numbers)}{'I' if wide else 'H'}", *numbers), 4 if wide else 3
