"""The preview: a baseline JPEG of at most 500 bytes, meant to be scaled up and blurred while the picture loads.

Half of 500 bytes would be headers, so most of the quality is won there (`bench/preview_quality.py` shows each step):
one gently rising quantization table for all components, which also beats the standard ones at this size, Huffman tables
made for the picture, and no JFIF segment, which decoders do not need. Pillow encodes: in 0.05 ms where libvips takes
0.4, and with a table of one's own.
"""

from __future__ import annotations

import io
import math

from PIL import Image

from service.images.probe import MAX_PREVIEW_BYTES, MAX_PREVIEW_SIDE
from worker.imaging.formats.picture import Picture

# Its encoders are loaded now: a child does not wait for them at its first picture, when it is confined.
Image.preinit()

# Long side; the first that fits. 48 is three whole blocks of 16 and fits every photograph; noise may need less.
PREVIEW_PX = (MAX_PREVIEW_SIDE, 32, 16)

# Quantization steps of the lowest frequency, 3 % apart. Higher frequencies get up to 2.4 times as much.
_STEPS = tuple(4 * 1.03**i for i in range(142))
_TABLES = tuple([min(255, round(step * (1 + 0.1 * (u + v)))) for v in range(8) for u in range(8)] for step in _STEPS)
_MEDIAN_STEP = 62  # 25, of 24 photographs

# Of those photographs: all but some 190 bytes shrink by 2.15 % with each step. Then two or three tries are enough.
_FIXED_BYTES = 190
_SHRINK_A_STEP = 0.0215
_CLOSE_BYTES = 8
_MOST_TRIES = 5

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def encode_preview(picture: Picture) -> bytes:
    """Aspect kept, but at least 1 pixel a side; oriented; greyscale where the picture is."""
    small = picture.small
    full = Image.frombytes("L" if small.bands == 1 else "RGB", (small.width, small.height), small.pixels)
    for px in PREVIEW_PX:
        scale = min(1, px / max(picture.width, picture.height))
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        image = full.resize(size, Image.Resampling.HAMMING)
        if picture.orientation in _TURNS:
            image = image.transpose(_TURNS[picture.orientation])
        data = _encode_to_fit(image)
        if data is not None:
            return data
    raise AssertionError("16 x 16 pixels in 255 steps always fit")


def _encode_to_fit(image: Image.Image) -> bytes | None:
    """The finest steps that fit, or nearly those; None where even the coarsest do not fit."""
    too_fine, fits, best = -1, len(_TABLES), None
    at, tries = _MEDIAN_STEP, 0
    while fits - too_fine > 1:
        data = _encode(image, _TABLES[at])
        tries += 1
        if len(data) <= MAX_PREVIEW_BYTES:
            fits, best = at, data
        else:
            too_fine = at
        if best is not None and (len(best) >= MAX_PREVIEW_BYTES - _CLOSE_BYTES or tries >= _MOST_TRIES):
            break
        ratio = max(1, len(data) - _FIXED_BYTES) / (MAX_PREVIEW_BYTES - _CLOSE_BYTES // 2 - _FIXED_BYTES)
        at = min(max(at + round(math.log(ratio) / _SHRINK_A_STEP), too_fine + 1), fits - 1)
    return best


def _encode(image: Image.Image, table: list[int]) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", qtables=[table], subsampling="4:2:0", optimize=True)
    return without_spare_headers(out.getvalue())


def without_spare_headers(data: bytes) -> bytes:
    """Without JFIF and with all Huffman tables in one segment: 27 bytes less."""
    segments, tables = [], []
    at = 2
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xC4:
            tables.append(data[at + 4 : end])
        elif data[at + 1] != 0xE0:
            segments.append(data[at:end])
        at = end
    huffman = b"".join(tables)
    return b"".join([data[:2], *segments, b"\xff\xc4", (len(huffman) + 2).to_bytes(2, "big"), huffman, data[at:]])
