"""The preview: a baseline JPEG of at most 500 bytes, meant to be scaled up and blurred while the picture loads.

Headers would take half of the 500 bytes, so most of the quality is gained there (`bench/preview_quality.py` shows each
step): one quantization table with a gentle slope for all components, which also beats the standard tables at this size;
Huffman tables optimized for the picture; and no JFIF segment, which decoders do not need. Pillow encodes it in 0.05 ms,
and accepts the table; libvips takes 0.4.
"""

from __future__ import annotations

import math

from PIL import Image

from service.images.probe import MAX_PREVIEW_BYTES, MAX_PREVIEW_SIDE
from worker.imaging.formats.format import DecodedPicture

# Loads the encoders now. Otherwise the first picture would wait for them, inside the sandbox.
Image.preinit()

# The long sides to try; the first that fits is used. 48 is three whole blocks of 16 and fits every photograph, but not
# noise.
PREVIEW_PX = (MAX_PREVIEW_SIDE, 32, 16)

# Quantization steps of the lowest frequency, 3 % apart. Those of higher frequencies are up to 2.4 times as large.
_STEPS = tuple(4 * 1.03**i for i in range(142))
_TABLES = tuple([min(255, round(step * (1 + 0.1 * (u + v)))) for v in range(8) for u in range(8)] for step in _STEPS)
_MEDIAN_STEP = 62  # a step of 25, the median of 24 photographs

# In those photographs all but some 190 bytes shrink by 2.15 % with each step, so two or three attempts are enough.
_FIXED_BYTES = 190
_SHRINK_PER_STEP = 0.0215
_CLOSE_BYTES = 8
_MAX_TRIES = 5

# Of Pillow's encoder: quality, progressive, smooth, optimize, keep_rgb, streamtype, dpi, subsampling (2 is 4:2:0), and
# restart markers by blocks and by rows. The quantization tables, the comment, segments and EXIF follow.
_ENCODER_OPTIONS = (-1, False, 0, True, False, 0, (0, 0), 2, 0, 0)
_ENCODER_BUFFER_BYTES = 1 << 16
_ENCODER_DONE = 1

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def encode_preview(picture: DecodedPicture) -> bytes:
    """Returns the upright preview, grey if the picture is. It keeps the aspect ratio, with at least 1 pixel a side."""
    small = picture.small_copy
    full = Image.frombytes("L" if small.bands == 1 else "RGB", (small.width, small.height), small.pixels)
    for px in PREVIEW_PX:
        scale = min(1, px / max(picture.width, picture.height))
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        image = full.resize(size, Image.Resampling.HAMMING, reducing_gap=2.0)
        if picture.orientation in _TURNS:
            image = image.transpose(_TURNS[picture.orientation])
        data = _encode_to_fit(image)
        if data is not None:
            return data
    raise AssertionError("16 x 16 pixels in 255 steps always fit")


def _encode_to_fit(image: Image.Image) -> bytes | None:
    """Encodes with about the finest table that fits; returns None if even the coarsest does not."""
    too_fine, fits, best = -1, len(_TABLES), None
    at, tries = _MEDIAN_STEP, 0
    while fits - too_fine > 1:
        data = encode(image, _TABLES[at])
        tries += 1
        if len(data) <= MAX_PREVIEW_BYTES:
            fits, best = at, data
        else:
            too_fine = at
        if best is not None and (len(best) >= MAX_PREVIEW_BYTES - _CLOSE_BYTES or tries >= _MAX_TRIES):
            break
        ratio = max(1, len(data) - _FIXED_BYTES) / (MAX_PREVIEW_BYTES - _CLOSE_BYTES // 2 - _FIXED_BYTES)
        at = min(max(at + round(math.log(ratio) / _SHRINK_PER_STEP), too_fine + 1), fits - 1)
    return best


def encode(image: Image.Image, table: list[int]) -> bytes:
    """Does what `image.save(…, "JPEG", qtables=[table], subsampling="4:2:0", optimize=True)` does, in half the time."""
    encoder = Image.core.jpeg_encoder(  # type: ignore[attr-defined] # Pillow has no public way
        image.mode, image.mode, *_ENCODER_OPTIONS, [table], None, b"", b""
    )
    encoder.setimage(image.im, (0, 0, *image.size))
    _, status, data = encoder.encode(_ENCODER_BUFFER_BYTES)
    if status != _ENCODER_DONE:
        raise OSError(f"Pillow's encoder returned {status}")
    return without_spare_headers(data)


def without_spare_headers(data: bytes) -> bytes:
    """Removes JFIF, and joins all Huffman tables in one segment: 27 bytes less."""
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
