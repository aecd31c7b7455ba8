"""Pictures with the maximum number of pixels, in few bytes. Most are generated in some milliseconds."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

from PIL import Image

from tests.support import pictures

# The default of DAGUERRE_MAX_PIXELS.
SIDE = 10_000
# 100 MB of pixels, above which libvips uses a temporary file. For formats that are slow at 100 million pixels.
THRESHOLD_SIDE = 5_920
SVG = f'<svg xmlns="http://www.w3.org/2000/svg" width="{SIDE}" height="{SIDE}"><rect width="500" height="400"/></svg>'

# The passes of Adam7: first column and row, and steps between columns and rows (PNG, 8.2).
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_BLOCK = 1 << 20
_TILE = 400


def deflate_zeros(size: int) -> bytes:
    """Returns a zlib stream of `size` zeros, at least two million: one compressed block, repeated."""
    stream = zlib.compressobj(9)
    head = stream.compress(bytes(_BLOCK)) + stream.flush(zlib.Z_FULL_FLUSH)
    block = stream.compress(bytes(_BLOCK)) + stream.flush(zlib.Z_FULL_FLUSH)
    count, rest = divmod(size, _BLOCK)
    tail = stream.compress(bytes(rest)) + stream.flush()
    checksum = struct.pack(">HH", size % 65_521, 1)
    return head + block * (count - 1) + tail[:-4] + checksum


def png(side: int = SIDE, *, interlaced: bool = False) -> bytes:
    """Returns a black RGB PNG of 8 bits per band."""
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    size = sum((1 + 3 * len(range(x, side, right))) * len(range(y, side, down)) for x, y, right, down in passes)
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, interlaced)
    chunks = ((b"IHDR", head), (b"IDAT", deflate_zeros(size)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(pictures.chunk(kind, body) for kind, body in chunks)


def webp(side: int = SIDE) -> bytes:
    return _riff(_lossless(side))


def webp_animation(side: int, count: int) -> bytes:
    size = (side - 1).to_bytes(3, "little")
    head = _chunk(b"VP8X", b"\2\0\0\0" + size * 2) + _chunk(b"ANIM", bytes(6))
    frame = _chunk(b"ANMF", bytes(6) + size * 2 + (100).to_bytes(3, "little") + b"\0" + _lossless(side))
    return _riff(head + frame * count)


def _lossless(side: int) -> bytes:
    """Returns transparent black in 20 bytes: each of the five codes has one symbol of 0 bits (RFC 9649, 3.7)."""
    size = (side - 1) | (side - 1) << 14
    no_transform_cache_or_groups = 0b000
    one_symbol = 0b0001  # a simple code, of one symbol, written in one bit: 0
    codes = sum(one_symbol << 4 * number for number in range(5))
    bits = 0x2F | size << 8 | no_transform_cache_or_groups << 40 | codes << 43
    return _chunk(b"VP8L", bits.to_bytes(8, "little"))


def _chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


def _riff(chunks: bytes) -> bytes:
    return _chunk(b"RIFF", b"WEBP" + chunks)


def tiff(side: int = SIDE, *, tiled: bool = False) -> bytes:
    """Returns a black RGB TIFF of 8 bits per band. All strips or tiles have the same offset in the file."""
    pixels = zlib.compress(bytes(3 * _TILE * (_TILE if tiled else side)), 9)
    count = (side // _TILE) ** (2 if tiled else 1)
    if tiled:
        parts = [_longs(322, _TILE), _longs(323, _TILE), _longs(324, *[0] * count), _longs(325, *[len(pixels)] * count)]
    else:
        parts = [_longs(273, *[0] * count), _longs(278, _TILE), _longs(279, *[len(pixels)] * count)]
    bits = (258, 3, 3, struct.pack("<3H", 8, 8, 8))
    common = [_longs(tag, value) for tag, value in ((256, side), (257, side), (259, 8), (262, 2), (277, 3))]
    offsets_tag = 324 if tiled else 273

    def build_header(at: int) -> bytes:
        own = [_longs(offsets_tag, *[at] * count) if entry[0] == offsets_tag else entry for entry in parts]
        return pictures.exif_block(sorted([*common, *own, bits], key=lambda entry: entry[0]))

    return build_header(len(build_header(0))) + pixels


def _longs(tag: int, *values: int) -> pictures.Entry:
    return tag, 4, len(values), struct.pack(f"<{len(values)}I", *values)


def _black(form: str, side: int = SIDE, *, mode: str = "RGB", **options: object) -> bytes:
    return pictures.encode(form, Image.new(mode, (side, side)), **options)


# HEIC is missing, because there is no encoder, and libheif limits the number of cells of a grid.
LARGE: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: _black("JPEG"),
    "jpeg, progressive": lambda: _black("JPEG", THRESHOLD_SIDE, progressive=True),
    "png": png,
    "png, interlaced": lambda: png(interlaced=True),
    "webp": webp,
    "webp, animated": lambda: webp_animation(7_000, 2),
    "gif": lambda: _black("GIF", mode="P"),
    "avif": lambda: _black("AVIF", THRESHOLD_SIDE, speed=10),
    "tiff": tiff,
    "tiff, tiles": lambda: tiff(tiled=True),
    "svg": SVG.encode,
}
