"""JPEG. This module parses the header; libjpeg-turbo or libvips decodes the pixels, no larger than needed."""

from __future__ import annotations

import mmap
import os
import re
import struct
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial

import pyvips

from service.images.probe import Rejected
from worker.file_headers import SOF_MARKERS, Read, bytes_reader
from worker.imaging.colour import ICC_PROFILE, convert_untagged_cmyk
from worker.imaging.containers.jpeg import (
    APP1,
    APP2,
    EOI,
    EXIF_HEAD,
    PROFILE_HEAD,
    SOS,
    XMP_HEAD,
    Truncated,
    count_scans,
    segments,
)
from worker.imaging.exif import is_exif, read_exif, read_orientation
from worker.imaging.formats.format import DecodedPicture, Format, FrameSelection, Original
from worker.imaging.formats.source import Source
from worker.imaging.formats.turbo_jpegs import Pixels, decode_turbo
from worker.imaging.location_removal.jpeg import blank_jpeg
from worker.imaging.small_copy import SmallCopy, copy_pixels, make_small_copy
from worker.imaging.vips import read_blob, valid_orientation

# The minimum long side to which a JPEG is scaled by its own transform, which is free; SMALL_PX is for other formats.
# 128 would raise the previews' SSIM by only 0.0004.
JPEG_SMALL_PX = 64

# A JPEG of up to this size is decoded from memory, without its EXIF. For larger ones that would save little.
IN_MEMORY_BYTES = 1 << 20

# Warnings of libjpeg that mean lost pixels. Others are usual in files of cameras: bytes before the end marker, odd SOS
# parameters, unknown JFIF revisions. libjpeg reports only the first warning of a file.
_LOST_PIXELS = re.compile(
    r"premature end|bad Huffman code|bad arithmetic code|instead of RST|extraneous bytes before marker 0xd[0-7]",
    re.IGNORECASE,
)

# The maximum error of the width or height of the result, in pixels.
_MAX_STRETCH = 0.25

# The offset of the height in a start of frame.
_HEIGHT_AT = 5
_PROGRESSIVE_MARKERS = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_LOSSLESS_MARKERS = frozenset({0xC3, 0xCB})
_HIERARCHICAL_MARKERS = frozenset({0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF})
_JPEG_LS = 0xF7  # ITU-T T.87 has a start of frame of its own
_END = bytes([0xFF, EOI])
# In a segment with a part of an ICC profile: its number, the number of parts, and the part itself from here on.
_PROFILE_AT = len(PROFILE_HEAD) + 2
# Editors may add a block to the camera's, and a block of 64 KB or more takes several segments.
_MAX_EXIF_SEGMENTS = 16
# Encoders write about 10. An empty scan takes only a few bytes, but a pass over the whole picture.
_MAX_SCANS = 100


def probe(source: Source) -> DecodedPicture:
    file = read_jpeg(source)
    file.reject_truncated()
    short, long = sorted((file.header.width, file.header.height))
    shrink = next(s for s in (8, 4, 2, 1) if s == 1 or (long >= s * JPEG_SMALL_PX and short >= 8 * s))
    profile = file.header.profile
    pixels = file.decode_turbo(shrink)
    if pixels is not None:
        small_copy = copy_pixels(pixels.values, profile)
        return _describe(file, small_copy or make_small_copy(pixels.to_image(profile), profile))
    image = file.load_all(shrink)
    file.reject_other_size(image, shrink)
    picture = _describe(file, make_small_copy(image, read_blob(image, ICC_PROFILE)))
    _reject_lost_pixels()
    return picture


def _reject_lost_pixels() -> None:
    """Raises Rejected after a warning of libjpeg that means damage.

    libvips leaves the warning in its message buffer, and would fail only if it came before the last lines.
    """
    warning = pyvips.ffi.string(pyvips.vips_lib.vips_error_buffer()).decode("utf-8", "replace")
    if _LOST_PIXELS.search(warning):
        raise Rejected("damaged-image")


def open_original(source: Source, _: FrameSelection) -> Original:
    file = read_jpeg(source)
    header = file.header

    def load(scale: float) -> pyvips.Image:
        shrink = next(s for s in (8, 4, 2, 1) if s == 1 or _fits(header, s, scale))
        pixels = file.decode_turbo(shrink)
        if pixels is not None:
            return pixels.to_image(header.profile)
        image = file.load(shrink)
        file.reject_other_size(image, shrink)
        width, height = (max(1, round(side / shrink)) for side in (header.width, header.height))
        if (width, height) != (image.width, image.height):  # libvips rounds the size down
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


def read_jpeg(source: Source) -> JpegFile:
    stored = os.fstat(source.fd).st_size
    data = os.pread(source.fd, stored, 0) if stored <= IN_MEMORY_BYTES else None
    header = _read_header(partial(os.pread, source.fd) if data is None else bytes_reader(data))
    source.check_size(header.width, header.height)
    file = JpegFile(source, header, data)
    if not header.single_scan:
        file.reject_truncated()
    return file


@dataclass(frozen=True, slots=True)
class JpegFile:
    """A JPEG whose header was read and whose size was checked. `data` is the whole file, if it is decoded from
    memory.
    """

    source: Source
    header: JpegHeader
    data: bytes | None

    def read_without_exif(self) -> bytes:
        """Returns the file without EXIF and stray bytes.

        libvips would convert every EXIF tag to text, which takes long compared with the pixels of a small picture.
        Stray bytes cause a warning that would hide later ones.
        """
        data = self.data or self.source.read_all()
        header = self.header
        other_segments = (data[start:end] for start, end in header.other_segments)
        return b"".join([data[:2], *other_segments, data[header.pixels_at :]])

    def decode_turbo(self, shrink: int) -> Pixels | None:
        header = self.header
        data = self.source.map() if self.data is None else self.data
        return decode_turbo(data, width=header.width, height=header.height, components=header.components, shrink=shrink)

    def load(self, shrink: int) -> pyvips.Image:
        options = {"shrink": shrink, "fail_on": "truncated", "access": "sequential"}
        if self.data is None:
            return self._in_colour(self.source.load(pyvips.Image.jpegload_source, **options))
        return self._in_colour(pyvips.Image.jpegload_buffer(self.read_without_exif(), **options))

    def load_all(self, shrink: int) -> pyvips.Image:
        """Like `load`, but decodes every line of the picture.

        libvips returns whole pixels only, so it does not decode the last row of blocks if that has fewer lines than one
        pixel. Then the height is raised in the header, so that the padding of that row completes the pixel.
        """
        header = self.header
        last_lines = header.height % header.block_lines
        if last_lines == 0 or last_lines >= shrink or not header.single_scan:
            return self.load(shrink)
        data = bytearray(self.read_without_exif())
        at = 2 + sum(end - start for start, end in header.other_segments if start < header.frame_at) + _HEIGHT_AT
        data[at : at + 2] = struct.pack(">H", min(header.height - last_lines + shrink, 0xFFFF))
        image = pyvips.Image.jpegload_buffer(bytes(data), shrink=shrink, fail_on="truncated", access="sequential")
        return self._in_colour(image)

    def _in_colour(self, image: pyvips.Image) -> pyvips.Image:
        return convert_untagged_cmyk(image) if self.header.components == 4 else image

    def reject_truncated(self) -> None:
        """Raises Rejected if the file ends before its last scan does, or has too many scans.

        Data after the end of the picture, e.g. a video, is ignored.
        """
        fd, data = self.source.fd, self.data
        last = os.pread(fd, 2, os.fstat(fd).st_size - 2) if data is None else data[-2:]
        if self.header.single_scan and last == _END:
            return  # a scan never contains an end marker
        with _mapped(fd) if data is None else nullcontext(data) as whole:
            try:
                scans = count_scans(whole, self.header.pixels_at, _MAX_SCANS + 1)
            except Truncated:
                raise Rejected("damaged-image") from None
        if scans > _MAX_SCANS:
            raise Rejected("probe-failed")

    def reject_other_size(self, image: pyvips.Image, shrink: int) -> None:
        """Raises Rejected if the image does not have the size that was checked."""
        width, height = self.header.width, self.header.height
        if abs(image.width * shrink - width) >= shrink or abs(image.height * shrink - height) >= shrink:
            raise Rejected("damaged-image")


def _describe(file: JpegFile, small_copy: SmallCopy) -> DecodedPicture:
    header = file.header
    exif = read_exif(*header.exif)
    return DecodedPicture(
        width=header.width,
        height=header.height,
        orientation=header.orientation if len(header.exif) > 1 else valid_orientation(exif.get("Orientation")),
        pages=1,
        has_alpha=False,
        exif=exif,
        small_copy=small_copy,
    )


def _fits(header: JpegHeader, shrink: int, scale: float) -> bool:
    """Returns whether a JPEG can be decoded with this shrink factor.

    It must not become smaller than `scale`, and a fraction of a pixel at its edge must not be stretched too far.
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
    """The header: all segments before the pixels.

    `width` and `height` are as stored, from the first start of frame, at the offset `frame_at`. `exif` has the first
    blocks of EXIF, and `profile_chunks` the parts of the ICC profile by their numbers. `app1` are start and end of the
    application segments 1 (EXIF and XMP), and `other_segments` those of all others. `block_lines` is the number of
    lines in a row of blocks, for all components together. The first scan's pixels start at `pixels_at`; `single_scan`
    means that there is no other.
    """

    width: int
    height: int
    components: int
    frame_at: int
    block_lines: int
    single_scan: bool
    exif: list[bytes]
    profile_chunks: dict[int, bytes]
    app1: list[tuple[int, int]]
    other_segments: list[tuple[int, int]]
    pixels_at: int

    @property
    def profile(self) -> bytes | None:
        """The ICC profile. If it has several parts, their numbers give the order."""
        chunks = self.profile_chunks
        return b"".join(chunks[number] for number in sorted(chunks)) if chunks else None

    @property
    def orientation(self) -> int:
        """The orientation of the first block, as in browsers, even if only another block has one."""
        return valid_orientation(read_orientation(self.exif[0] if self.exif else None))


def _read_header(read: Read) -> JpegHeader:
    """Returns the header. Raises Rejected. libvips cannot do this: it returns the size only after shrink-on-load."""
    frame, frame_at = b"", 0
    exif: list[bytes] = []
    profile_chunks: dict[int, bytes] = {}
    app1: list[tuple[int, int]] = []
    other_segments: list[tuple[int, int]] = []
    for head, at, end in segments(read):
        if head[1] == APP1:
            app1.append((at, end))
            if head[4:9] == EXIF_HEAD and len(exif) < _MAX_EXIF_SEGMENTS:
                exif.append(read(end - at - 4, at + 4))
            continue
        other_segments.append((at, end))
        if head[1] in SOF_MARKERS and not frame:
            frame, frame_at = head, at
        elif head[1] == SOS and len(frame) == len(head) == 10:
            _, sof_marker, _, _, height, width, components = struct.unpack(">BBHBHHB", frame)
            _reject_unsupported(sof_marker, frame[4])
            sampling = [factors & 15 for factors in read(3 * components, frame_at + len(frame))[1::3]]
            if 0 in {width, height, max(sampling, default=0)}:
                break
            single_scan = sof_marker not in _PROGRESSIVE_MARKERS and head[4] == components
            block_lines = 8 * max(sampling)
            return JpegHeader(
                width, height, components, frame_at, block_lines, single_scan, _join(exif), profile_chunks, app1,
                other_segments, end,
            )  # fmt: skip
        elif head[1] == APP2:
            segment = read(end - at - 4, at + 4)
            if segment.startswith(PROFILE_HEAD) and len(segment) > _PROFILE_AT:
                profile_chunks[segment[_PROFILE_AT - 2]] = segment[_PROFILE_AT:]
        elif head[1] == _JPEG_LS:
            raise Rejected("unsupported-image", "JPEG-LS")
    raise Rejected("damaged-image")


def _reject_unsupported(sof_marker: int, bits: int) -> None:
    """Raises Rejected for what libjpeg does not decode, by the marker and the bits of a sample."""
    if sof_marker in _LOSSLESS_MARKERS:
        raise Rejected("unsupported-image", "lossless JPEG")
    if sof_marker in _HIERARCHICAL_MARKERS:
        raise Rejected("unsupported-image", "hierarchical JPEG")
    if bits == 12:
        raise Rejected("unsupported-image", "12-bit JPEG")


def _join(segments_of_exif: list[bytes]) -> list[bytes]:
    """Returns the blocks of EXIF: one of more than 64 KB continues in the next segment, after the same head."""
    blocks: list[bytes] = []
    for segment in segments_of_exif:
        if blocks and is_exif(blocks[-1]) and not is_exif(segment):
            blocks[-1] += segment[len(EXIF_HEAD) + 1 :]
        else:
            blocks.append(segment)
    return blocks


def size_of(data: bytes) -> tuple[int, int]:
    """Returns width and height. Raises Rejected if the file is not a JPEG that can be decoded."""
    header = _read_header(bytes_reader(data))
    return header.width, header.height


def _mapped(fd: int) -> closing[mmap.mmap]:
    return closing(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))


FORMAT = Format("jpeg", ("JpegSource", "JpegBuffer"), probe, open_original, blank_jpeg)
