"""JPEG: its size is read here, and libvips or Pillow decodes it no larger than it is needed."""

from __future__ import annotations

import mmap
import os
import re
import struct
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial

import pyvips

from service.images.probe import Rejected
from worker.imaging.colour import ICC_PROFILE, mix_unknown_inks
from worker.imaging.containers.jpeg import EOI, SOS, CutShort, count_scans, segments
from worker.imaging.exif import is_exif, read_exif, read_orientation
from worker.imaging.formats.fields import blob, valid_orientation
from worker.imaging.formats.original import Frames, Original
from worker.imaging.formats.picture import Picture
from worker.imaging.formats.small_jpegs import decode_small
from worker.imaging.formats.source import Source, reader
from worker.imaging.pixels import reduce

# The long side that a JPEG is scaled to at least, by its own transform, which costs nothing; see SMALL_PX for others.
# 128 would raise the previews' SSIM by 0.0004 only.
JPEG_SMALL_PX = 64

# A JPEG of up to this size is decoded from memory, without its EXIF; in a larger one that saves little.
IN_MEMORY_BYTES = 1 << 20

# Warnings of libjpeg that mean lost pixels. Others are habits of cameras: bytes before the end marker, odd SOS
# parameters, unknown JFIF revisions. It reports the first of a file only.
_LOST_PIXELS = re.compile(
    r"premature end|bad Huffman code|bad arithmetic code|instead of RST|extraneous bytes before marker 0xd[0-7]",
    re.IGNORECASE,
)

# In pixels of the result, of all the width or height together.
_MAX_STRETCH = 0.25

# Start of frame: 0xC0 to 0xCF without DHT, JPG and DAC.
_SOF_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_HEIGHT_AT = 5
_PROGRESSIVE_MARKERS = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_LOSSLESS_MARKERS = frozenset({0xC3, 0xCB})
_HIERARCHICAL_MARKERS = frozenset({0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF})
_JPEG_LS = 0xF7  # ITU-T T.87 has a start of frame of its own
APP1 = 0xE1
_END = bytes([0xFF, EOI])
EXIF_HEAD = b"Exif\0"  # and one more byte
# Editors may add a block to that of the camera, and one of 64 KB or more takes several.
_MAX_EXIF_SEGMENTS = 16
XMP_HEAD = b"http://ns.adobe.com/xap/1.0/\0"
# Encoders write about 10. A scan that says nothing takes some bytes, and a walk over all of the picture.
_MAX_SCANS = 100


def probe(source: Source) -> Picture:
    file = open_file(source)
    file.refuse_cut()
    short, long = sorted((file.header.width, file.header.height))
    shrink = next(s for s in (8, 4, 2, 1) if s == 1 or (long >= s * JPEG_SMALL_PX and short >= 8 * s))
    picture = _picture(file.load_all(shrink), file, shrink)
    _refuse_lost_pixels()
    return picture


def _refuse_lost_pixels() -> None:
    """libvips leaves libjpeg's warning among its messages, and would fail for it only before the last lines."""
    warning = pyvips.ffi.string(pyvips.vips_lib.vips_error_buffer()).decode("utf-8", "replace")
    if _LOST_PIXELS.search(warning):
        raise Rejected("damaged-image")


def open_original(source: Source, _: Frames) -> Original:
    file = open_file(source)
    header = file.header

    def load(scale: float) -> pyvips.Image:
        shrink = next(s for s in (8, 4, 2, 1) if s == 1 or _fits(header, s, scale))
        image = decode_small(file.read_bare, header.width, header.height, shrink)
        if image is None:
            image = file.load(shrink)
            file.refuse_other_frame(image, shrink)
        width, height = (max(1, round(side / shrink)) for side in (header.width, header.height))
        if (width, height) != (image.width, image.height):  # one has a pixel for a part of one, the other has none
            image = image.embed(0, 0, width, height, extend="copy")
        return image

    return Original(
        width=header.width,
        height=header.height,
        load=load,
        orientation=header.orientation,
        exif=next(filter(is_exif, header.exif), None),
        read_xmp=partial(_read_xmp, source, header),
    )


def open_file(source: Source) -> JpegFile:
    stored = os.fstat(source.fd).st_size
    data = os.pread(source.fd, stored, 0) if stored <= IN_MEMORY_BYTES else None
    header = _read_header(partial(os.pread, source.fd) if data is None else reader(data))
    source.admit(header.width, header.height)
    file = JpegFile(source, header, data)
    if not header.single_scan:
        file.refuse_cut()
    return file


@dataclass(frozen=True, slots=True)
class JpegFile:
    """A JPEG whose header was read and admitted. `data` is all of it, where it is decoded from memory."""

    source: Source
    header: JpegHeader
    data: bytes | None

    def read_bare(self) -> bytes:
        """All but EXIF, of which libvips makes a text of every tag: that takes long beside the pixels of a small
        picture. Stray bytes are left out too, as they would hide the warnings behind them.
        """
        data = self.data or self.source.read_all()
        header = self.header
        return b"".join([data[:2], *(data[start:end] for start, end in header.kept), data[header.pixels_at :]])

    def load(self, shrink: int) -> pyvips.Image:
        options = {"shrink": shrink, "fail_on": "truncated", "access": "sequential"}
        if self.data is None:
            return self._in_colour(self.source.decode(pyvips.Image.jpegload_source, **options))
        return self._in_colour(pyvips.Image.jpegload_buffer(self.read_bare(), **options))

    def load_all(self, shrink: int) -> pyvips.Image:
        """As `load`, and no line of the picture is left undecoded.

        libvips gives whole pixels only, so it stops before the last row of blocks if that has fewer lines than a pixel.
        The lines that fill up that row count as the picture's then.
        """
        header = self.header
        left = header.height % header.block_lines
        if left == 0 or left >= shrink or not header.single_scan:
            return self.load(shrink)
        bare = bytearray(self.read_bare())
        at = 2 + sum(end - start for start, end in header.kept if start < header.frame_at) + _HEIGHT_AT
        bare[at : at + 2] = struct.pack(">H", min(header.height - left + shrink, 0xFFFF))
        image = pyvips.Image.jpegload_buffer(bytes(bare), shrink=shrink, fail_on="truncated", access="sequential")
        return self._in_colour(image)

    def _in_colour(self, image: pyvips.Image) -> pyvips.Image:
        return mix_unknown_inks(image) if self.header.components == 4 else image

    def refuse_cut(self) -> None:
        """Refuse a JPEG that ends before its last scan does, and one that is made of scans to keep us busy. What lies
        behind the end, such as a film, does not count.
        """
        fd, data = self.source.fd, self.data
        last = os.pread(fd, 2, os.fstat(fd).st_size - 2) if data is None else data[-2:]
        if self.header.single_scan and last == _END:
            return  # it is never found inside of a scan
        with _mapped(fd) if data is None else nullcontext(data) as whole:
            try:
                scans = count_scans(whole, self.header.pixels_at, _MAX_SCANS + 1)
            except CutShort:
                raise Rejected("damaged-image") from None
        if scans > _MAX_SCANS:
            raise Rejected("probe-failed")

    def refuse_other_frame(self, image: pyvips.Image, shrink: int) -> None:
        """Refuse an image that is not of the size that was admitted."""
        width, height = self.header.width, self.header.height
        if abs(image.width * shrink - width) >= shrink or abs(image.height * shrink - height) >= shrink:
            raise Rejected("damaged-image")


def _picture(image: pyvips.Image, file: JpegFile, shrink: int) -> Picture:
    file.refuse_other_frame(image, shrink)
    header = file.header
    exif = read_exif(*header.exif)
    return Picture(
        width=header.width,
        height=header.height,
        orientation=header.orientation if len(header.exif) > 1 else valid_orientation(exif.get("Orientation")),
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
    """What stands before the pixels. `width` and `height` are as stored, from the first start of frame, which lies at
    `frame_at`; `exif` are the first blocks of it. `app1` are start and end of the application segments 1, of EXIF and
    XMP, and `kept` those of all others. `block_lines` are the lines of a row of blocks, of all components
    together. `single_scan` means that one scan has all of the pixels; that begins at `pixels_at`.
    """

    width: int
    height: int
    components: int
    frame_at: int
    block_lines: int
    single_scan: bool
    exif: list[bytes]
    app1: list[tuple[int, int]]
    kept: list[tuple[int, int]]
    pixels_at: int

    @property
    def orientation(self) -> int:
        """That of the first block, as in browsers, also if another one has it."""
        return valid_orientation(read_orientation(self.exif[0] if self.exif else None))


def _read_header(read: Callable[[int, int], bytes]) -> JpegHeader:
    """`read` returns up to `size` bytes (first parameter) from an offset (second). Raises Rejected.

    Our own, since libvips only gives the size after shrink-on-load.
    """
    frame, frame_at = b"", 0
    exif: list[bytes] = []
    app1: list[tuple[int, int]] = []
    kept: list[tuple[int, int]] = []
    for head, at, end in segments(read):
        if head[1] == APP1:
            app1.append((at, end))
            if head[4:9] == EXIF_HEAD and len(exif) < _MAX_EXIF_SEGMENTS:
                exif.append(read(end - at - 4, at + 4))
            continue
        kept.append((at, end))
        if head[1] in _SOF_MARKERS and not frame:
            frame, frame_at = head, at
        elif head[1] == SOS and len(frame) == len(head) == 10:
            _, kind, _, _, height, width, components = struct.unpack(">BBHBHHB", frame)
            _refuse_unsupported(kind, frame[4])
            sampling = [factors & 15 for factors in read(3 * components, frame_at + len(frame))[1::3]]
            if 0 in {width, height, max(sampling, default=0)}:
                break
            single_scan = kind not in _PROGRESSIVE_MARKERS and head[4] == components
            block_lines = 8 * max(sampling)
            return JpegHeader(
                width, height, components, frame_at, block_lines, single_scan, _join(exif), app1, kept, end
            )
        elif head[1] == _JPEG_LS:
            raise Rejected("unsupported-image", "JPEG-LS")
    raise Rejected("damaged-image")


def _refuse_unsupported(frame_marker: int, bits: int) -> None:
    """Refuse what libjpeg does not decode, by the start of frame: its marker and the bits of a sample."""
    if frame_marker in _LOSSLESS_MARKERS:
        raise Rejected("unsupported-image", "lossless JPEG")
    if frame_marker in _HIERARCHICAL_MARKERS:
        raise Rejected("unsupported-image", "hierarchical JPEG")
    if bits == 12:
        raise Rejected("unsupported-image", "12-bit JPEG")


def _join(segments_of_exif: list[bytes]) -> list[bytes]:
    """The blocks of EXIF: one of more than 64 KB goes on in the next segment, behind the same head."""
    blocks: list[bytes] = []
    for segment in segments_of_exif:
        if blocks and is_exif(blocks[-1]) and not is_exif(segment):
            blocks[-1] += segment[len(EXIF_HEAD) + 1 :]
        else:
            blocks.append(segment)
    return blocks


def size_of(data: bytes) -> tuple[int, int]:
    """Raises Rejected where there is none."""
    header = _read_header(reader(data))
    return header.width, header.height


def _mapped(fd: int) -> closing[mmap.mmap]:
    return closing(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))
