"""JPEG: its size is read here, and libvips or Pillow decodes it no larger than it is needed."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pyvips

from service.probes import Rejected
from worker.imaging.colour import mix_unknown_inks
from worker.imaging.exif import read_exif, read_orientation
from worker.imaging.formats.fields import ICC_PROFILE, blob, valid_orientation
from worker.imaging.formats.original import Frames, Original
from worker.imaging.formats.picture import Picture
from worker.imaging.formats.small_jpegs import decode_small
from worker.imaging.formats.source import MOST_READS, Source
from worker.imaging.pixels import reduce

# The long side that a JPEG is scaled to at least, by its own transform, which costs nothing; see SMALL_PX for others.
# 128 would raise the previews' SSIM by 0.0004 only.
JPEG_SMALL_PX = 64

# A JPEG of up to this size is decoded from memory, without its EXIF; in a larger one that saves little.
IN_MEMORY_BYTES = 1 << 20

# The first warnings of libjpeg that mean lost pixels. Others are habits of cameras: stray bytes before a marker, odd
# SOS parameters, unknown JFIF revisions.
_LOST_PIXELS = ("premature end", "bad Huffman code", "bad arithmetic code", "instead of RST")

# In pixels of the result, of all the width or height together.
_MAX_STRETCH = 0.25

# Start of frame: 0xC0 to 0xCF without DHT, JPG and DAC.
_SOF_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE_MARKERS = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_MARKERS_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_START_OF_SCAN, APP1 = 0xDA, 0xE1
XMP_HEAD = b"http://ns.adobe.com/xap/1.0/\0"
# Encoders write about 10. A scan that says nothing takes some bytes, and a walk over all of the picture.
_MOST_SCANS = 100


def probe(source: Source) -> Picture:
    file = open_file(source)
    short, long = sorted((file.header.width, file.header.height))
    shrink = next(s for s in (8, 4, 2, 1) if s == 1 or (long >= s * JPEG_SMALL_PX and short >= 8 * s))
    try:
        return _picture(file.load(shrink, "warning"), file, shrink)
    except pyvips.Error as error:
        if any(sign in str(error) for sign in _LOST_PIXELS):
            raise
        return _picture(file.load(shrink, "truncated"), file, shrink)


def open_original(source: Source, _: Frames) -> Original:
    file = open_file(source)
    header = file.header

    def load(scale: float) -> pyvips.Image:
        shrink = next(s for s in (8, 4, 2, 1) if s == 1 or _fits(header, s, scale))
        image = decode_small(file.read_bare, header.width, header.height, shrink)
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
        read_xmp=partial(_read_xmp, source, header),
    )


def open_file(source: Source) -> JpegFile:
    stored = os.fstat(source.fd).st_size
    data = os.pread(source.fd, stored, 0) if stored <= IN_MEMORY_BYTES else None
    header = _read_header(partial(os.pread, source.fd) if data is None else partial(_part, data))
    source.admit(header.width, header.height)
    if header.progressive:
        _refuse_many_scans(source.fd, header.pixels_at)
    return JpegFile(source, header, None if data is None else _bare(data, header))


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
            image = pyvips.Image.jpegload(self.source.path, **options)
        else:
            image = pyvips.Image.jpegload_buffer(self.bare, **options)
        return mix_unknown_inks(image, blob(image, ICC_PROFILE))

    def refuse_other_frame(self, image: pyvips.Image, shrink: int) -> None:
        """Refuse an image that is not of the size that was admitted."""
        width, height = self.header.width, self.header.height
        if abs(image.width * shrink - width) >= shrink or abs(image.height * shrink - height) >= shrink:
            raise Rejected("damaged-image")


def _bare(data: bytes, header: JpegHeader) -> bytes:
    """Without EXIF: libvips makes a text of every tag, which takes long beside the pixels of a small picture."""
    ends = [0, *(end for _, end in header.app1)]
    starts = [*(start for start, _ in header.app1), len(data)]
    return b"".join(data[end:start] for end, start in zip(ends, starts, strict=True))


def _picture(image: pyvips.Image, file: JpegFile, shrink: int) -> Picture:
    file.refuse_other_frame(image, shrink)
    exif = read_exif(file.header.exif)
    return Picture(
        width=file.header.width,
        height=file.header.height,
        orientation=valid_orientation(exif.get("Orientation")),
        pages=1,
        has_alpha=False,
        exif=exif,
        small=reduce(image, blob(image, ICC_PROFILE)),
    )


def _fits(header: JpegHeader, shrink: int, scale: float) -> bool:
    """Whether a JPEG can be decoded so much smaller: not below its size, nor with what is not a whole pixel at its edge
    stretched or squeezed too far.
    """
    if shrink * scale > 1:
        return False
    odd = max(abs(side / shrink - round(side / shrink)) for side in (header.width, header.height))
    return odd * shrink * scale <= _MAX_STRETCH


def _read_xmp(source: Source, header: JpegHeader) -> bytes | None:
    for start, end in header.app1:
        segment = os.pread(source.fd, end - start - 4, start + 4)
        if segment.startswith(XMP_HEAD):
            return segment.removeprefix(XMP_HEAD)
    return None


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """Width and height as stored, from the first start of frame; the first EXIF block; where the application segments
    1, of EXIF and XMP, lie as far as they come before the pixels: pairs of start and end; and where those begin."""

    width: int
    height: int
    progressive: bool
    exif: bytes | None
    app1: list[tuple[int, int]]
    pixels_at: int


def _read_header(read: Callable[[int, int], bytes]) -> JpegHeader:
    """`read` answers up to so many bytes (first parameter) at an offset (second).

    Our own, since libvips only gives the size after shrink-on-load.
    """
    size: tuple[int, int] | None = None
    progressive = False
    exif: bytes | None = None
    app1: list[tuple[int, int]] = []
    pixels_at = 2
    for head, at, end in segments(read):
        pixels_at = end
        if head[1] in _SOF_MARKERS and size is None:
            height, width = struct.unpack_from(">HH", head, 5)
            size = (width, height)
            progressive = head[1] in _PROGRESSIVE_MARKERS
        elif head[1] == APP1:
            app1.append((at, end))
            if exif is None and head[4:10] == b"Exif\0\0":
                exif = read(end - at - 4, at + 4)
    if size is None or 0 in size:
        raise Rejected("damaged-image")
    return JpegHeader(*size, progressive, exif, app1, pixels_at)


def size_of(data: bytes) -> tuple[int, int]:
    """Raises Rejected where there is none."""
    header = _read_header(partial(_part, data))
    return header.width, header.height


def _part(data: bytes, size: int, at: int) -> bytes:
    return data[at : at + size]


def segments(read: Callable[[int, int], bytes], at: int = 2) -> Iterator[tuple[bytes, int, int]]:
    """The first 10 bytes or fewer, start and end of each segment up to the pixels, or to what is none; also of each
    fill byte and each marker without a length. An end may lie behind that of the file.
    """
    for _ in range(MOST_READS):
        head = read(10, at)
        if len(head) < 9 or head[0] != 0xFF:
            return
        length = int.from_bytes(head[2:4], "big")
        end = at + 2 + length
        if head[1] == 0xFF:  # fill byte
            end = at + 1
        elif head[1] in _MARKERS_WITHOUT_LENGTH:
            end = at + 2
        elif head[1] == _START_OF_SCAN or length < 2:
            return
        yield head, at, end
        at = end


def _refuse_many_scans(fd: int, start: int) -> None:
    """Refuse a JPEG that is made of scans to keep us busy. Neither a scan nor the end of the picture is found inside of
    a scan, where 0xFF is escaped; what lies behind the end, such as a film, does not count.
    """
    with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as data:
        end = data.find(b"\xff\xd9", start)
        end = len(data) if end == -1 else end
        at = start
        for _ in range(_MOST_SCANS + 1):
            at = data.find(bytes([0xFF, _START_OF_SCAN]), at, end) + 2
            if at < 2:
                return
    raise Rejected("probe-failed")
