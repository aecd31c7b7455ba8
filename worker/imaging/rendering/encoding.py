"""Encodes the frames of a rendition, with encoder efforts that keep requests short."""

from __future__ import annotations

import io

import pyvips
from PIL import Image

from service.renditions.transformation import Transformation
from worker.imaging.containers.jpeg import XMP_HEAD, write_app1
from worker.imaging.containers.png import XMP_KEYWORD, write_chunk
from worker.imaging.containers.tiff import ASCII, Tag, write_block
from worker.imaging.formats.format import Animation
from worker.imaging.rendering.metadata import Metadata
from worker.imaging.rendering.pixels import to_colour

# Up to this size Pillow encodes JPEGs: 0.3 ms faster than libvips, which starts a thread, and in half the time for
# optimized Huffman tables.
_SMALL_PIXELS = 1_000_000

# From this quality on chroma is not subsampled, as in libvips.
_FULL_COLOUR_QUALITY = 90

# Maximum pixels and effort, so that a photograph takes 60 to 140 ms; effort 0 takes 55 ms per million pixels.
_AVIF_EFFORTS = ((150_000, 3), (450_000, 2), (1_200_000, 1))
# 40 ms per million pixels of a photograph. A higher effort takes twice as long for 5 % fewer bytes; a lower one saves
# a quarter of the time.
_WEBP_EFFORT = 2
# 35 ms per million pixels of a photograph; libvips's default takes 150 for 2 % fewer bytes.
_PNG_COMPRESSION, _PNG_FILTER = 3, "sub"
# 0.35 s per million pixels of a photograph, whose colours are quantized; libvips's default takes 0.9.
_GIF_EFFORT = 1

_IMAGE_DESCRIPTION = 0x010E


def encode(
    frames: list[pyvips.Image], transformation: Transformation, animation: Animation | None, metadata: Metadata
) -> bytes:
    """Returns the file. `frames` are 8-bit sRGB or grey, with or without alpha, all alike; several need `animation`."""
    match transformation.format:
        case "jpeg":
            return _jpeg(frames[0], transformation.quality, metadata)
        case "png":
            return _png(frames[0], metadata)
        case "webp":
            return _webp(_join(frames, animation), transformation.quality, metadata)
        case "avif":
            return _avif(to_colour(frames[0]), transformation.quality, metadata)
        case "gif":
            return bytes(_join(frames, animation).gifsave_buffer(effort=_GIF_EFFORT, keep="none"))


def _join(frames: list[pyvips.Image], animation: Animation | None) -> pyvips.Image:
    """Returns the frames below each other, as libvips expects animations."""
    if animation is None:
        return to_colour(frames[0])
    tall = pyvips.Image.arrayjoin([to_colour(frame) for frame in frames], across=1).copy()
    tall.set_type(pyvips.GValue.gint_type, "page-height", frames[0].height)
    tall.set_type(pyvips.GValue.array_int_type, "delay", animation.delays)
    tall.set_type(pyvips.GValue.gint_type, "loop", animation.loop)
    return tall


def _jpeg(image: pyvips.Image, quality: int, metadata: Metadata) -> bytes:
    data = _small_jpeg(image, quality)
    if data is None:
        data = bytes(image.jpegsave_buffer(Q=quality, optimize_coding=True, keep="none"))
    segments = b""
    for head, contents in ((b"Exif\0\0", metadata.exif), (XMP_HEAD, metadata.xmp)):
        if contents is not None:
            segments += write_app1(head, contents)
    start = 4 + int.from_bytes(data[4:6], "big") if data[2:4] == b"\xff\xe0" else 2
    return data[:start] + segments + data[start:]


def _small_jpeg(image: pyvips.Image, quality: int) -> bytes | None:
    """Returns None if the image is not small, or if the result exceeds Pillow's buffer, e.g. for noise."""
    width, height = image.width, image.height
    if width * height > _SMALL_PIXELS:
        return None
    pixels = pyvips.Region.new(image).fetch(0, 0, width, height)
    small = Image.frombytes("L" if image.bands == 1 else "RGB", (width, height), pixels)
    subsampling = "4:2:0" if quality < _FULL_COLOUR_QUALITY else "4:4:4"
    out = io.BytesIO()
    try:
        small.save(out, "JPEG", quality=quality, subsampling=subsampling, optimize=True)
    except OSError:
        return None
    return out.getvalue()


def _png(image: pyvips.Image, metadata: Metadata) -> bytes:
    data = image.pngsave_buffer(compression=_PNG_COMPRESSION, filter=_PNG_FILTER, keep="none")
    head_bytes = 33  # the signature and IHDR
    chunks = b""
    if metadata.exif is not None:
        chunks += write_chunk(b"eXIf", metadata.exif)
    if metadata.xmp is not None:
        # Five zeros: the keyword's end, no compression (2), no language, no translated keyword.
        chunks += write_chunk(b"iTXt", XMP_KEYWORD + bytes(5) + metadata.xmp)
    return bytes(data[:head_bytes] + chunks + data[head_bytes:])


def _webp(image: pyvips.Image, quality: int, metadata: Metadata) -> bytes:
    image, keep = _attach_metadata(image, metadata)
    data = image.webpsave_buffer(Q=quality, effort=_WEBP_EFFORT, keep=keep)
    return _insert_exif(data, metadata.exif)


def _avif(image: pyvips.Image, quality: int, metadata: Metadata) -> bytes:
    pixels = image.width * image.height
    effort = next((effort for max_pixels, effort in _AVIF_EFFORTS if pixels <= max_pixels), 0)
    image, keep = _attach_metadata(image, metadata)
    data = image.heifsave_buffer(compression="av1", Q=quality, effort=effort, bitdepth=8, keep=keep)
    return _insert_exif(data, metadata.exif)


def _attach_metadata(image: pyvips.Image, metadata: Metadata) -> tuple[pyvips.Image, str]:
    """Returns the image with metadata, and the value of libvips's option `keep`.

    libvips would rewrite EXIF and add tags. So it gets a placeholder of the right length, which `_insert_exif`
    overwrites.
    """
    image = image.copy()
    keep = []
    if metadata.exif is not None:
        placeholder = _placeholder(metadata.exif)
        block = write_block("little", [Tag(_IMAGE_DESCRIPTION, ASCII, len(placeholder), placeholder)], {})
        image.set_type(pyvips.GValue.blob_type, "exif-data", b"Exif\0\0" + block)
        keep.append("exif")
    if metadata.xmp is not None:
        image.set_type(pyvips.GValue.blob_type, "xmp-data", metadata.xmp)
        keep.append("xmp")
    return image, ",".join(keep) or "none"


def _placeholder(exif: bytes) -> bytes:
    return b"r" * len(exif) + b"\0"


def _insert_exif(data: bytes, exif: bytes | None) -> bytes:
    if exif is None:
        return bytes(data)
    end = data.index(_placeholder(exif)) + len(exif)
    start = max(data.rindex(magic, 0, end) for magic in (b"II*\0", b"MM\0*") if magic in data[:end])
    return b"".join([data[:start], exif.ljust(end - start, b"\0"), data[end:]])
