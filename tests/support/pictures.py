"""Generates sample pictures of every format."""

from __future__ import annotations

import base64
import functools
import io
import struct
import zlib
from typing import Any

from PIL import Image, ImageFilter

WIDTH, HEIGHT = 96, 64
RED, GREEN, BLUE, WHITE = (220, 30, 30), (30, 200, 30), (30, 30, 220), (255, 255, 255)

# 32 x 48 when displayed: 48 x 32 pixels, with red decreasing to the right and green to the bottom, rotated by 90
# degrees by irot. EXIF: Make "Daguerre", Orientation 6 (already applied by irot), 33 degrees 30 minutes south. There is
# no encoder in the test environment, so it was made with pillow-heif 1.x (x265, quality 20).
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAbRtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAADRp"
    "bG9jAAAAAERAAAIAAQAAAAAB2AABAAAAAAAAADgAAgAAAAACEAABAAAAAAAAAHwAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAAAAABAABo"
    "dmMxAAAAABVpbmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAAA82lwcnAAAADTaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA"
    "/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMD"
    "IAAAAwAhYgABAAZEAcFzwIkAAAAUaXNwZQAAAAAAAABAAAAAQAAAAChjbGFwAAAAMAAAAAEAAAAgAAAAAf////AAAAAC////4AAAAAIA"
    "AAAQcGl4aQAAAAADCAgIAAAACWlyb3QDAAAAGGlwbWEAAAAAAAAAAQABBYECBIOFAAAAGmlyZWYAAAAAAAAADmNkc2MAAgABAAEAAAC8"
    "bWRhdAAAADQoAa8LYPXmLTYra8YEr9xAQc1fO20R8gMem6M4p9xYkhDIQD8o190Ayiu7+6Gd48KKDuHsAAAABkV4aWYAAE1NACoAAAAI"
    "AAMBDwACAAAACQAAADIBEgADAAAAAQAGAACIJQAEAAAAAQAAADwAAAAARGFndWVycmUAAAACAAEAAgAAAAJTAAAAAAIABQAAAAMAAABa"
    "AAAAAAAAACEAAAABAAAAHgAAAAEAAAAAAAAAAQ=="
)

SVG = b"""<?xml version="1.0" encoding="UTF-8"?>
<!-- a comment --><svg xmlns="http://www.w3.org/2000/svg" width="96" height="64">
<rect width="48" height="64" fill="#dc1e1e"/></svg>"""


def quarters(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Returns quarters of red, green, blue and white, which differ in every orientation."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    image.paste(WHITE, (width // 2, height // 2, width, height))
    return image


def landscape(width: int, height: int) -> Image.Image:
    """Returns noise of several frequencies, like in a photograph."""
    bands = []
    for _ in range(3):
        band = Image.linear_gradient("L").resize((width, height))
        for divisor, weight in ((64, 0.5), (16, 0.3), (4, 0.2), (1, 0.1)):
            noise = Image.effect_noise((max(2, width // divisor), max(2, height // divisor)), 90)
            band = Image.blend(band, noise.resize((width, height), Image.Resampling.BICUBIC), weight)
        bands.append(band)
    return Image.merge("RGB", bands).filter(ImageFilter.SMOOTH)


def encode(form: str, image: Image.Image | None = None, **options: Any) -> bytes:
    """Returns the image, by default `quarters()`, in a format. `form` is Pillow's name of it."""
    out = io.BytesIO()
    (image or quarters()).save(out, form, **options)
    return out.getvalue()


def frames(count: int) -> list[Image.Image]:
    return [quarters().rotate(7 * i) for i in range(count)]


def animate(form: str, count: int = 4) -> bytes:
    first, *rest = frames(count)
    return encode(form, first, save_all=True, append_images=rest, duration=100)


def transparent() -> Image.Image:
    """Returns a black image whose left half is transparent."""
    image = Image.new("RGBA", (WIDTH, HEIGHT), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, WIDTH // 2, HEIGHT))
    return image


@functools.cache
def every_format() -> dict[str, bytes]:
    """Returns a complete sample of each kind of file by name. The name starts with the format."""
    photo = landscape(160, 120)
    return {
        "jpeg": encode("JPEG", photo),
        "jpeg, progressive": encode("JPEG", photo, progressive=True),
        "jpeg, grey": encode("JPEG", photo.convert("L")),
        "jpeg, CMYK": encode("JPEG", photo.convert("CMYK")),
        "jpeg, restart markers": encode("JPEG", photo, restart_marker_rows=1),
        "png": encode("PNG", photo),
        "png, palette": encode("PNG", photo.quantize(64)),
        "png, alpha": encode("PNG", transparent()),
        "png, animated": animate("PNG"),
        "webp": encode("WEBP", photo),
        "webp, lossless": encode("WEBP", photo, lossless=True),
        "webp, animated": animate("WEBP"),
        "gif": encode("GIF", photo.quantize(64)),
        "gif, animated": animate("GIF"),
        "avif": encode("AVIF", photo, speed=10),
        "tiff": encode("TIFF", photo),
        "tiff, LZW": encode("TIFF", photo, compression="tiff_lzw"),
        "tiff, pages": animate("TIFF"),
        "heic": HEIC,
        "svg": SVG,
    }


def png_header(width: int, height: int) -> bytes:
    """Returns a PNG that declares a size and has almost no pixels."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind, body)
        for kind, body in (
            (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(bytes(1000))),
            (b"IEND", b""),
        )
    )


def deep_png(alpha: int) -> bytes:
    """Returns a mid-grey PNG with 16 bits per band and this alpha."""
    row = b"\0" + struct.pack(">4H", 32768, 32768, 32768, alpha) * WIDTH
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind, body)
        for kind, body in (
            (b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 6, 0, 0, 0)),
            (b"IDAT", zlib.compress(row * HEIGHT)),
            (b"IEND", b""),
        )
    )


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


Entry = tuple[int, int, int, bytes]  # tag, type, count, value in the byte order of the block


def exif_block(
    image: list[Entry], photo: list[Entry] | None = None, gps: list[Entry] | None = None, order: str = "<"
) -> bytes:
    """Returns a TIFF structure with these directories. It is well-formed if the entries are."""
    directories = {0: list(image)}
    for tag, entries in ((0x8769, photo), (0x8825, gps)):
        if entries is not None:
            directories[tag] = list(entries)
            directories[0].append((tag, 4, 1, b"\0\0\0\0"))
    offsets, at = {}, 8
    for tag, entries in directories.items():
        offsets[tag] = at
        at += 2 + 12 * len(entries) + 4 + sum(len(value) for *_, value in entries if len(value) > 4)
    body = struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, 8)
    for own, entries in directories.items():
        outside = b""
        body += struct.pack(order + "H", len(entries))
        end = offsets[own] + 2 + 12 * len(entries) + 4
        for tag, kind, count, value in entries:
            if own == 0 and tag in offsets:
                field = struct.pack(order + "I", offsets[tag])
            elif len(value) > 4:
                field = struct.pack(order + "I", end + len(outside))
                outside += value
            else:
                field = value.ljust(4, b"\0")
            body += struct.pack(order + "HHI", tag, kind, count) + field
        body += bytes(4) + outside
    return body


def ascii_entry(tag: int, text: bytes) -> Entry:
    return tag, 2, len(text) + 1, text + b"\0"


def rationals(tag: int, *pairs: tuple[int, int], order: str = "<", signed: bool = False) -> Entry:
    code = order + ("ii" if signed else "II")
    return tag, 10 if signed else 5, len(pairs), b"".join(struct.pack(code, *pair) for pair in pairs)


def icc_profile(
    red: tuple[float, float, float],
    blue: tuple[float, float, float],
    green: tuple[float, float, float] = (0.3851, 0.7169, 0.0971),
) -> bytes:
    """Returns a linear RGB profile (version 2) with these colorants in XYZ. The default green is that of sRGB."""

    def xyz(values: tuple[float, float, float]) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))

    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"Test\0" + bytes(78),
        b"wtpt": xyz((0.9642, 1.0, 0.8249)),
        b"rXYZ": xyz(red),
        b"gXYZ": xyz(green),
        b"bXYZ": xyz(blue),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), b"curv\0\0\0\0" + struct.pack(">IHH", 1, 0x0233, 0)),
    }
    table, data, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        padded = value + bytes(-len(value) % 4)
        table += name + struct.pack(">II", start + len(data), len(value))
        data += padded
    head = struct.pack(
        ">I4sI4s4s4s12s4s", start + len(data), b"\0\0\0\0", 0x02100000, b"mntr", b"RGB ", b"XYZ ", bytes(12), b"acsp"
    )
    head += bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + data
