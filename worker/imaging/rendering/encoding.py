"""Bytes of a rendition, in the time that a request has."""

from __future__ import annotations

import io
import struct
import zlib

import pyvips
from PIL import Image

from service.renditions.transformation import Transformation
from worker.imaging.formats.jpeg import XMP_HEAD
from worker.imaging.formats.original import Animation
from worker.imaging.rendering.metadata import Metadata
from worker.imaging.rendering.pixels import in_colour

# Pillow takes 0.3 ms less of a JPEG, in which libvips starts a thread, and half as long for its own Huffman tables.
_SMALL_PIXELS = 1_000_000

# From here on colours are as fine as brightness; libvips has it so, too.
_FULL_COLOUR_QUALITY = 90

# The effort up to so many pixels, so that a photograph takes 60 to 140 ms; with the least it is 55 ms a million.
_AVIF_EFFORTS = ((150_000, 3), (450_000, 2), (1_200_000, 1))
# 40 ms a million pixels of a photograph. More takes twice as long for 5 % fewer bytes, less saves a quarter.
_WEBP_EFFORT = 2
# 35 ms a million pixels of a photograph; libvips's default takes 150 for 2 % fewer bytes.
_PNG_COMPRESSION, _PNG_FILTER = 3, "sub"
# 0.35 s a million pixels of a photograph, for its few colours have to be mixed; libvips's default takes 0.9.
_GIF_EFFORT = 1


def encode(frames: list[pyvips.Image], asked: Transformation, animation: Animation | None, metadata: Metadata) -> bytes:
    """`frames` are 8-bit sRGB or grey, with or without alpha, all alike; more than one have an `animation`."""
    match asked.format:
        case "jpeg":
            return _jpeg(frames[0], asked.quality, metadata)
        case "png":
            return _png(frames[0], metadata)
        case "webp":
            return _webp(_joined(frames, animation), asked.quality, metadata)
        case "avif":
            return _avif(in_colour(frames[0]), asked.quality, metadata)
        case "gif":
            return bytes(_joined(frames, animation).gifsave_buffer(effort=_GIF_EFFORT, keep="none"))


def _joined(frames: list[pyvips.Image], animation: Animation | None) -> pyvips.Image:
    """Below each other, as libvips has animations."""
    if animation is None:
        return in_colour(frames[0])
    tall = pyvips.Image.arrayjoin([in_colour(frame) for frame in frames], across=1).copy()
    tall.set_type(pyvips.GValue.gint_type, "page-height", frames[0].height)
    tall.set_type(pyvips.GValue.array_int_type, "delay", animation.delays)
    tall.set_type(pyvips.GValue.gint_type, "loop", animation.loop)
    return tall


def _jpeg(image: pyvips.Image, quality: int, metadata: Metadata) -> bytes:
    data = _small_jpeg(image, quality) if image.width * image.height <= _SMALL_PIXELS else None
    if data is None:
        data = bytes(image.jpegsave_buffer(Q=quality, optimize_coding=True, keep="none"))
    segments = b""
    for name, body in ((b"Exif\0\0", metadata.exif), (XMP_HEAD, metadata.xmp)):
        if body is not None:
            segments += b"\xff\xe1" + struct.pack(">H", 2 + len(name) + len(body)) + name + body
    start = 4 + int.from_bytes(data[4:6], "big") if data[2:4] == b"\xff\xe0" else 2
    return data[:start] + segments + data[start:]


def _small_jpeg(image: pyvips.Image, quality: int) -> bytes | None:
    """None where it takes more bytes than Pillow has room for, as noise does."""
    pixels = pyvips.Region.new(image).fetch(0, 0, image.width, image.height)
    small = Image.frombytes("L" if image.bands == 1 else "RGB", (image.width, image.height), pixels)
    subsampling = "4:2:0" if quality < _FULL_COLOUR_QUALITY else "4:4:4"
    out = io.BytesIO()
    try:
        small.save(out, "JPEG", quality=quality, subsampling=subsampling, optimize=True)
    except OSError:
        return None
    return out.getvalue()


def _png(image: pyvips.Image, metadata: Metadata) -> bytes:
    data = image.pngsave_buffer(compression=_PNG_COMPRESSION, filter=_PNG_FILTER, keep="none")
    head = 33  # the signature and IHDR
    chunks = b""
    if metadata.exif is not None:
        chunks += _chunk(b"eXIf", metadata.exif)
    if metadata.xmp is not None:
        chunks += _chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + metadata.xmp)
    return bytes(data[:head] + chunks + data[head:])


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _webp(image: pyvips.Image, quality: int, metadata: Metadata) -> bytes:
    image, keep = _tagged(image, metadata)
    data = image.webpsave_buffer(Q=quality, effort=_WEBP_EFFORT, keep=keep)
    return _with_own_exif(data, metadata.exif)


def _avif(image: pyvips.Image, quality: int, metadata: Metadata) -> bytes:
    pixels = image.width * image.height
    effort = next((effort for most, effort in _AVIF_EFFORTS if pixels <= most), 0)
    image, keep = _tagged(image, metadata)
    data = image.heifsave_buffer(compression="av1", Q=quality, effort=effort, bitdepth=8, keep=keep)
    return _with_own_exif(data, metadata.exif)


def _tagged(image: pyvips.Image, metadata: Metadata) -> tuple[pyvips.Image, str]:
    """libvips writes EXIF in its own words, with tags that nobody asked for: it is given one to make room."""
    image = image.copy()
    keep = []
    if metadata.exif is not None:
        room = _room(metadata.exif)
        size = len(room)
        block = struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<HHHIII", 1, 0x010E, 2, size, 26, 0) + room
        image.set_type(pyvips.GValue.blob_type, "exif-data", b"Exif\0\0" + block)
        keep.append("exif")
    if metadata.xmp is not None:
        image.set_type(pyvips.GValue.blob_type, "xmp-data", metadata.xmp)
        keep.append("xmp")
    return image, ",".join(keep) or "none"


def _room(exif: bytes) -> bytes:
    return b"r" * len(exif) + b"\0"


def _with_own_exif(data: bytes, exif: bytes | None) -> bytes:
    if exif is None:
        return bytes(data)
    end = data.index(_room(exif)) + len(exif)
    start = max(data.rindex(order, 0, end) for order in (b"II*\0", b"MM\0*") if order in data[:end])
    return b"".join([data[:start], exif.ljust(end - start, b"\0"), data[end:]])
