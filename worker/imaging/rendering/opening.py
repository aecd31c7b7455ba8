"""A source, its header read and admitted, whose pixels are decoded no larger than they are needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pyvips

from service.probes import Rejected
from worker.imaging import loaders
from worker.imaging.containers import JpegHeader, png_size, refuse_cut_gif, webp_frames, webp_has_alpha
from worker.imaging.exif import read_orientation
from worker.imaging.loaders import Source, blob, orientation_of, valid_orientation
from worker.imaging.rendering.small_jpegs import decode_small
from worker.imaging.sniffing import HEAD_BYTES, sniff

_XMP = b"http://ns.adobe.com/xap/1.0/\0"
# In pixels of the result, of all the width or height together.
_MAX_STRETCH = 0.25
# Of an animation whose delays nobody told, in ms; as browsers have it.
_DELAY_MS = 100


@dataclass(frozen=True, slots=True)
class Frames:
    """Of an animation, or pages: `number` counts from 1, and past the last is the last. Without one the first is
    meant or, of an animation, `all`.
    """

    number: int | None = None
    all: bool = False


@dataclass(frozen=True, slots=True)
class Animation:
    """`delays` are in ms, one a frame; `loop` is how often it plays, 0 for ever."""

    delays: list[int]
    loop: int


@dataclass(frozen=True, slots=True)
class Original:
    """Sizes are of one frame, as stored. `load` answers with all of it, scaled by no less than the factor that it is
    given (1 or less, or more for a drawing), frames below each other. `exif` is a block, or a TIFF by its descriptor.
    """

    width: int
    height: int
    load: Callable[[float], pyvips.Image]
    orientation: int = 1
    drawing: bool = False  # has no pixels of its own
    animation: Animation | None = None
    keeps_alpha: bool = True  # False where the decoder adds a band that says nothing
    exif: bytes | int | None = None
    read_xmp: Callable[[], bytes | None] = field(default=lambda: None)


@contextmanager
def opened(path: str, max_pixels: int, which: Frames) -> Iterator[Original]:
    """Raises Rejected, also where a decoder fails inside of the context, and OSError as `probe` does."""
    # What a picture before this one left there without failing would be read as a message about this one.
    pyvips.vips_lib.vips_error_clear()
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield _open(Source(path, fd, max_pixels), which)
    except Rejected:
        Path(path).stat()  # FileNotFoundError if it was moved before a decoder opened it: not the picture's fault
        raise
    except pyvips.Error as error:
        Path(path).stat()
        raise Rejected("damaged-image") from error
    except UnicodeDecodeError as error:
        # libvips's message repeats bytes of the file, and pyvips takes them for UTF-8 before it empties the buffer.
        pyvips.vips_lib.vips_error_clear()
        raise Rejected("damaged-image") from error
    finally:
        os.close(fd)


def _open(source: Source, which: Frames) -> Original:
    match sniff(os.pread(source.fd, HEAD_BYTES, 0)):
        case "gif":
            return _gif(source, which)
        case "webp":
            return _webp(source, which)
        case "tiff":
            return _tiff(source, which)
        case str() as form:
            return _OPEN_STILL[form](source)
        case None:
            raise Rejected("unsupported-image")


def _jpeg(source: Source) -> Original:
    file = loaders.open_jpeg(source)
    header = file.header

    def load(scale: float) -> pyvips.Image:
        shrink = next(s for s in (8, 4, 2, 1) if s == 1 or _fits(header, s, scale))
        image = decode_small(file, shrink)
        if image is None:
            image = file.load(shrink, "truncated")
            file.refuse_other_frame(image, shrink)
        width, height = (max(1, round(side / shrink)) for side in (header.width, header.height))
        if (width, height) != (image.width, image.height):  # one has a pixel for a part of one, the other has none
            image = image.embed(0, 0, width, height, extend="copy")
        return image

    return Original(
        width=header.width,
        height=header.height,
        load=load,
        orientation=valid_orientation(read_orientation(header.exif)),
        exif=header.exif,
        read_xmp=partial(_jpeg_xmp, source, header),
    )


def _fits(header: JpegHeader, shrink: int, scale: float) -> bool:
    """Whether a JPEG can be decoded so much smaller: not below its size, nor with what is not a whole pixel at its edge
    stretched or squeezed too far.
    """
    if shrink * scale > 1:
        return False
    odd = max(abs(side / shrink - round(side / shrink)) for side in (header.width, header.height))
    return odd * shrink * scale <= _MAX_STRETCH


def _jpeg_xmp(source: Source, header: JpegHeader) -> bytes | None:
    for start, end in header.app1:
        segment = os.pread(source.fd, end - start - 4, start + 4)
        if segment.startswith(_XMP):
            return segment.removeprefix(_XMP)
    return None


def _png(source: Source) -> Original:
    source.admit(*png_size(source.fd))
    image = pyvips.Image.pngload(source.path, fail_on="truncated", access="sequential")
    return _original(source, image)


def _gif(source: Source, which: Frames) -> Original:
    load = partial(pyvips.Image.gifload, source.path, fail_on="truncated", access="sequential")
    image = load()
    if which.number is None and which.all:
        refuse_cut_gif(source.fd)
    return _frames(source, image, load, which, pages=_pages(image))


def _webp(source: Source, which: Frames) -> Original:
    load = partial(pyvips.Image.webpload, source.path, fail_on="truncated", access="sequential")
    pages = webp_frames(source.fd)
    source.admit(1, 1, pages)
    image = load()
    if pages > 1:
        return _frames(source, image, load, which, pages=pages, keeps_alpha=webp_has_alpha(source.fd))
    width, height = image.width, image.height

    def load_scaled(scale: float) -> pyvips.Image:
        # libwebp scales by averages, which keep all that is needed at twice the size.
        return load(scale=2 * scale) if scale < 0.25 and min(width, height) * scale >= 1 else image

    return _original(source, image, load=load_scaled)


def _tiff(source: Source, which: Frames) -> Original:
    load = loaders.tiff_loader(source)
    image = load()
    pages = _pages(image)
    if which.number is not None and pages > 1:
        image = load(page=min(which.number, pages) - 1)
    return _original(source, image, exif=source.fd)


def _avif(source: Source) -> Original:
    image = pyvips.Image.heifload(source.path, fail_on="truncated", access="sequential")
    return _original(source, image)


def _heic(source: Source) -> Original:
    file = loaders.open_heic(source)
    info = file.info
    if profile := info.get("icc_profile"):
        file.image.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)

    def read_xmp() -> bytes | None:
        return bytes(info["xmp"]) if info.get("xmp") else None

    return Original(file.image.width, file.image.height, lambda _: file.image, exif=info.get("exif"), read_xmp=read_xmp)


def _svg(source: Source) -> Original:
    file = loaders.open_svg(source)

    def load(scale: float) -> pyvips.Image:
        return file.image if scale == 1 else file.load(scale)

    return Original(file.image.width, file.image.height, load, drawing=True)


_OPEN_STILL: dict[str, Callable[[Source], Original]] = {
    "jpeg": _jpeg,
    "png": _png,
    "avif": _avif,
    "heic": _heic,
    "svg": _svg,
}


def _frames(
    source: Source,
    image: pyvips.Image,
    load: Callable[..., pyvips.Image],
    which: Frames,
    *,
    pages: int,
    keeps_alpha: bool = True,
) -> Original:
    if which.number is not None:
        return _original(source, load(page=min(which.number, pages) - 1), keeps_alpha=keeps_alpha)
    if not which.all or pages == 1:
        return _original(source, image, keeps_alpha=keeps_alpha)
    source.admit(image.width, image.height, pages)
    delays = image.get("delay") if image.get_typeof("delay") else []
    delays = [*delays[:pages], *[_DELAY_MS] * (pages - len(delays))]
    loop = image.get("loop") if image.get_typeof("loop") else 0
    return _original(
        source, image, load=lambda _: load(n=-1), keeps_alpha=keeps_alpha, animation=Animation(delays, loop)
    )


def _original(
    source: Source,
    image: pyvips.Image,
    *,
    load: Callable[[float], pyvips.Image] | None = None,
    animation: Animation | None = None,
    keeps_alpha: bool = True,
    exif: bytes | int | None = None,
) -> Original:
    source.admit(image.width, image.height)
    return Original(
        image.width,
        image.height,
        load or (lambda _: image),
        orientation=orientation_of(image),
        animation=animation,
        keeps_alpha=keeps_alpha,
        exif=blob(image, "exif-data") if exif is None else exif,
        read_xmp=lambda: blob(image, "xmp-data"),
    )


def _pages(image: pyvips.Image) -> int:
    return int(image.get("n-pages")) if image.get_typeof("n-pages") else 1
