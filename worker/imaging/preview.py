"""The preview of at most 500 bytes."""

from __future__ import annotations

import io

from PIL import Image

from worker.imaging.loaders import Picture

MAX_PREVIEW_BYTES = 500
PREVIEW_PX = 48

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
    small = picture.small
    image = Image.frombytes("L" if small.bands == 1 else "RGB", (small.width, small.height), small.pixels)
    scale = PREVIEW_PX / max(picture.width, picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    image = image.resize(size, Image.Resampling.BOX)
    turn = _TURNS.get(picture.orientation)
    if turn is not None:
        image = image.transpose(turn)
    for step in (8, 16, 24, 32, 48, 64, 96, 128, 160, 200, 255):
        data = _encode(image, step)
        if len(data) <= MAX_PREVIEW_BYTES:
            break
    return data


def _encode(image: Image.Image, step: int) -> bytes:
    table = [min(255, round(step * (1 + 0.1 * (u + v)))) for v in range(8) for u in range(8)]
    out = io.BytesIO()
    image.save(out, "JPEG", qtables=[table], subsampling="4:2:0", optimize=True)
    return out.getvalue()
