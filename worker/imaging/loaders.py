"""One loader a format: check the header, decode the whole picture once, keep its metadata and a small copy."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pi_heif
import pyvips

from service.probes import Rejected
from worker.imaging.containers import (
    JpegHeader,
    png_frames,
    png_size,
    read_jpeg_header,
    refuse_cut_gif,
    refuse_many_scans,
    refuse_unreadable_heif_items,
    tiff_false_orientations,
    webp_frames,
    webp_has_alpha,
)
from worker.imaging.embedded import embedded_pixels
from worker.imaging.exif import read_exif
from worker.imaging.pixels import SMALL_PX, Small, fetch, reduce

# The long side that a JPEG is scaled to at least, by its own transform, which costs nothing; see SMALL_PX for others.
# 128 would raise the previews' SSIM by 0.0004 only.
JPEG_SMALL_PX = 64

# A JPEG of up to this size is decoded from memory, without its EXIF; in a larger one that saves little.
IN_MEMORY_BYTES = 1 << 20

# Frames of an animation, pages of a TIFF: each is decoded, and each has a cost of its own.
MAX_PAGES = 10_000

# Pages of a TIFF that are not all of one size have to be opened one by one, each by walking there from the first:
# 100 take 0.16 s, 1,000 take 14.
MAX_UNEQUAL_PAGES = 100

# Pixels of an animation that are decoded beyond its first frame: 0.1 s of a GIF, 0.4 s of a WebP. That it is complete
# is known without, from its blocks.
FRAMES_PIXELS = 10_000_000

# The first warnings of libjpeg that mean lost pixels. Others are habits of cameras: stray bytes before a marker, odd
# SOS parameters, unknown JFIF revisions.
_LOST_PIXELS = ("premature end", "bad Huffman code", "bad arithmetic code", "instead of RST")


@dataclass(frozen=True, slots=True)
class Source:
    """A file to load: the path for libvips, the same file opened for our own small reads."""

    path: str
    fd: int
    max_pixels: int

    def admit(self, width: int, height: int, pages: int = 1) -> None:
        if width * height * pages > self.max_pixels or pages > MAX_PAGES:
            raise Rejected("too-many-pixels")


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture. `width` and `height` are as stored; `orientation` still has to be applied to them and to
    `small`. `exif` is as `read_exif` answers it.
    """

    width: int
    height: int
    orientation: int
    pages: int
    has_alpha: bool
    exif: dict[str, object]
    small: Small


def prepare() -> None:
    """Set libvips up for untrusted files, once a process: only the loaders used here, one thread, nothing cached."""
    pyvips.operation_block_set("VipsForeignLoad", True)
    for loader in (
        "JpegFile",
        "JpegBuffer",
        "PngFile",
        "WebpFile",
        "NsgifFile",
        "HeifFile",
        "TiffFile",
        "TiffBuffer",
        "SvgBuffer",
    ):
        pyvips.operation_block_set(f"VipsForeignLoad{loader}", False)
    pyvips.cache_set_max(0)
    pyvips.concurrency_set(1)
    logging.getLogger("pyvips").setLevel(logging.CRITICAL)  # libvips's warnings about files: we answer with a code
    pi_heif.options.DECODE_THREADS = 1
    pi_heif.options.THUMBNAILS = False
    pi_heif.options.DEPTH_IMAGES = False
    pi_heif.options.AUX_IMAGES = False


@dataclass(frozen=True, slots=True)
class JpegFile:
    """A JPEG whose header was read and admitted. `bare` is all of it but EXIF, where it is decoded from memory."""

    source: Source
    header: JpegHeader
    bare: bytes | None

    def read_bare(self) -> bytes:
        if self.bare is not None:
            return self.bare
        return _bare(os.pread(self.source.fd, os.fstat(self.source.fd).st_size, 0), self.header)

    def load(self, shrink: int, fail_on: str) -> pyvips.Image:
        options = {"shrink": shrink, "fail_on": fail_on, "access": "sequential"}
        if self.bare is None:
            return pyvips.Image.jpegload(self.source.path, **options)
        return pyvips.Image.jpegload_buffer(self.bare, **options)

    def refuse_other_frame(self, image: pyvips.Image, shrink: int) -> None:
        """Refuse an image that is not of the size that was admitted."""
        width, height = self.header.width, self.header.height
        if abs(image.width * shrink - width) >= shrink or abs(image.height * shrink - height) >= shrink:
            raise Rejected("damaged-image")


def open_jpeg(source: Source) -> JpegFile:
    stored = os.fstat(source.fd).st_size
    data = os.pread(source.fd, stored, 0) if stored <= IN_MEMORY_BYTES else None
    header = read_jpeg_header(partial(os.pread, source.fd) if data is None else lambda size, at: data[at : at + size])
    source.admit(header.width, header.height)
    if header.progressive:
        refuse_many_scans(source.fd, header.pixels_at)
    return JpegFile(source, header, None if data is None else _bare(data, header))


def load_jpeg(source: Source) -> Picture:
    file = open_jpeg(source)
    short, long = sorted((file.header.width, file.header.height))
    shrink = next(s for s in (8, 4, 2, 1) if s == 1 or (long >= s * JPEG_SMALL_PX and short >= 8 * s))
    try:
        return _jpeg(file.load(shrink, "warning"), file, shrink)
    except pyvips.Error as error:
        if any(sign in str(error) for sign in _LOST_PIXELS):
            raise
        return _jpeg(file.load(shrink, "truncated"), file, shrink)


def _bare(data: bytes, header: JpegHeader) -> bytes:
    """Without EXIF: libvips makes a text of every tag, which takes long beside the pixels of a small picture."""
    ends = [0, *(end for _, end in header.app1)]
    starts = [*(start for start, _ in header.app1), len(data)]
    return b"".join(data[end:start] for end, start in zip(ends, starts, strict=True))


def _jpeg(image: pyvips.Image, file: JpegFile, shrink: int) -> Picture:
    file.refuse_other_frame(image, shrink)
    exif = read_exif(file.header.exif)
    return Picture(
        width=file.header.width,
        height=file.header.height,
        orientation=valid_orientation(exif.get("Orientation")),
        pages=1,
        has_alpha=False,
        exif=exif,
        small=reduce(image, blob(image, "icc-profile-data")),
    )


def load_png(source: Source) -> Picture:
    source.admit(*png_size(source.fd))
    pages = png_frames(source.fd)
    image = pyvips.Image.pngload(source.path, fail_on="truncated", access="sequential")
    source.admit(image.width, image.height, pages)
    return _picture(image, image.width, image.height, pages=pages)


def load_gif(source: Source) -> Picture:
    image = pyvips.Image.gifload(source.path, n=-1, fail_on="truncated", access="sequential")
    picture = _animation(source, image)
    refuse_cut_gif(source.fd)
    return picture


def load_webp(source: Source) -> Picture:
    source.admit(1, 1, webp_frames(source.fd))
    load = partial(pyvips.Image.webpload, source.path, fail_on="truncated", access="sequential")
    image = load(n=-1)
    if image.height != image.get_page_height():
        picture = _animation(source, image, load_some=lambda pages: load(n=pages))
        return replace(picture, has_alpha=webp_has_alpha(source.fd))
    width, height = image.width, image.height
    source.admit(width, height)
    scale = max(SMALL_PX / max(width, height), 1 / min(width, height))
    if scale < 0.5:  # libwebp's own scaling reads all the file too, in half the time
        image = load(scale=scale)
    return _picture(image, width, height)


def _animation(
    source: Source,
    image: pyvips.Image,
    *,
    checked_pixels: int = FRAMES_PIXELS,
    load_some: Callable[[int], pyvips.Image] | None = None,
) -> Picture:
    """All frames come as one tall image. The first is kept; others are decoded to see that they can be, as long as they
    are within `checked_pixels`. `load_some` opens so many of them, for a loader that decodes all that were asked for.
    """
    height = image.get_page_height()
    pages = image.height // height
    source.admit(image.width, height, pages)
    if pages == 1:
        return _picture(image, image.width, height)
    checked = min(pages, 1 + checked_pixels // (image.width * height))
    region = pyvips.Region.new(image if load_some is None else load_some(checked))
    first = fetch(region, image, height)
    for page in range(1, checked):
        region.fetch(0, page * height, image.width, height)
    return Picture(
        width=image.width,
        height=height,
        orientation=orientation_of(image),
        pages=pages,
        has_alpha=bool(image.hasalpha()),
        exif=read_exif(blob(image, "exif-data")),
        small=reduce(first, blob(image, "icc-profile-data")),
    )


def load_tiff(source: Source) -> Picture:
    """Every page is decoded: one cut off leaves no trace in the others.

    libtiff reports a strip that ends too early as an error, not as a truncation. The tags are the file's own.
    """
    return replace(_tiff(source), exif=read_exif(source.fd))


def _tiff(source: Source) -> Picture:
    load = tiff_loader(source)
    image = load()
    pages = image.get("n-pages") if image.get_typeof("n-pages") else 1
    source.admit(image.width, image.height, pages)
    if pages == 1:
        return _picture(image, image.width, image.height)
    try:
        tall = load(n=-1)
    except pyvips.Error:
        return _unequal_pages(source, load, image, pages)
    return _animation(source, tall, checked_pixels=source.max_pixels)


def tiff_loader(source: Source) -> Callable[..., pyvips.Image]:
    """libtiff reports an orientation that is none as an error too: then it is shown a copy that says 1."""
    options = {"fail_on": "error", "access": "sequential"}
    false = tiff_false_orientations(source.fd)
    if not false:
        return partial(pyvips.Image.tiffload, source.path, **options)
    data = bytearray(Path(source.path).read_bytes())
    for at, entry in false:
        data[at : at + len(entry)] = entry
    return partial(pyvips.Image.tiffload_buffer, bytes(data), **options)


def _unequal_pages(source: Source, load: Callable[..., pyvips.Image], first: pyvips.Image, pages: int) -> Picture:
    if pages > MAX_UNEQUAL_PAGES:
        raise Rejected("too-many-pixels")
    picture = _picture(first, first.width, first.height, pages=pages)
    seen = first.width * first.height
    for page in range(1, pages):
        image = load(page=page)
        seen += image.width * image.height
        source.admit(seen, 1)
        reduce(image, None)
    return picture


def load_avif(source: Source) -> Picture:
    image = pyvips.Image.heifload(source.path, fail_on="truncated", access="sequential")
    source.admit(image.width, image.height)
    return _picture(image, image.width, image.height)


@dataclass(frozen=True, slots=True)
class HeicFile:
    """A decoded HEIC. The container's own rotation and mirroring are applied, so its orientation is 1."""

    image: pyvips.Image
    has_alpha: bool
    info: dict[str, Any]


def open_heic(source: Source) -> HeicFile:
    refuse_unreadable_heif_items(source.fd)
    try:
        heif = pi_heif.open_heif(source.path)
        width, height = heif.size
        source.admit(width, height)
        pixels, mode, info = heif.data, heif.mode, heif.info
    except (ValueError, EOFError, SyntaxError, RuntimeError, OSError, IndexError) as error:
        raise Rejected("damaged-image") from error
    width, height = heif.size
    bands = len(mode.partition(";")[0])
    deep = mode.endswith(";16")
    image = pyvips.Image.new_from_memory(pixels, width, height, bands, "ushort" if deep else "uchar")
    image._references.append(heif)
    grey, colour = ("grey16", "rgb16") if deep else ("b-w", "srgb")
    return HeicFile(image.copy(interpretation=grey if bands < 3 else colour), heif.has_alpha, info)


def load_heic(source: Source) -> Picture:
    file = open_heic(source)
    return Picture(
        width=file.image.width,
        height=file.image.height,
        orientation=1,
        pages=1,
        has_alpha=file.has_alpha,
        exif=read_exif(file.info["exif"]),
        small=reduce(file.image, file.info.get("icc_profile")),
    )


@dataclass(frozen=True, slots=True)
class SvgFile:
    """In memory: without a base address librsvg fetches nothing that the picture refers to."""

    data: bytes
    image: pyvips.Image

    def load(self, scale: float) -> pyvips.Image:
        return _svg(self.data, scale)


def open_svg(source: Source) -> SvgFile:
    data = Path(source.path).read_bytes()
    source.admit(embedded_pixels(data), 1)
    image = _svg(data, 1)
    width, height = image.width, image.height
    source.admit(width, height)
    if 1 in {width, height} and not _is_tiny(data):
        raise Rejected("too-many-pixels")
    return SvgFile(data, image)


def load_svg(source: Source) -> Picture:
    file = open_svg(source)
    width, height = file.image.width, file.image.height
    scale = max(2 * SMALL_PX / max(width, height), 1 / min(width, height))
    return _picture(file.load(scale) if scale < 1 else file.image, width, height)


def _svg(data: bytes, scale: float) -> pyvips.Image:
    """At 96 dots an inch, as CSS has it; libvips counts them as a scale of 96/72 for all lengths."""
    return pyvips.Image.svgload_buffer(data, dpi=96, scale=0.75 * scale)


def _is_tiny(data: bytes) -> bool:
    """libvips says 1 pixel where a side has more than 100,000,000, and fails where it has more than 2^31."""
    try:
        larger = _svg(data, 25)
    except pyvips.Error:
        return False
    return bool(larger.width > 1 and larger.height > 1)


LOADERS: dict[str, Callable[[Source], Picture]] = {
    "jpeg": load_jpeg,
    "png": load_png,
    "webp": load_webp,
    "gif": load_gif,
    "avif": load_avif,
    "tiff": load_tiff,
    "heic": load_heic,
    "svg": load_svg,
}


def _picture(image: pyvips.Image, width: int, height: int, *, pages: int = 1) -> Picture:
    return Picture(
        width=width,
        height=height,
        orientation=orientation_of(image),
        pages=pages,
        has_alpha=bool(image.hasalpha()),
        exif=read_exif(blob(image, "exif-data")),
        small=reduce(image, blob(image, "icc-profile-data")),
    )


def orientation_of(image: pyvips.Image) -> int:
    return valid_orientation(image.get("orientation") if image.get_typeof("orientation") else 1)


def valid_orientation(value: object) -> int:
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def blob(image: pyvips.Image, name: str) -> bytes | None:
    return bytes(image.get(name)) if image.get_typeof(name) else None
