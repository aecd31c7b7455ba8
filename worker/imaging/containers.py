"""What a container says before a decoder is asked, read with a few small reads."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from service.probes import Rejected

# Start of frame: 0xC0 to 0xCF without DHT, JPG and DAC.
_SOF_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE_MARKERS = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
# A file with more chunks or segments than this is no picture but an attempt to keep us busy: 0.1 s.
_MOST_READS = 100_000

_ORIENTATION = 0x0112
# Of all pages of a TIFF together, with 15 or so each; directories may lie on each other. 0.2 s.
MOST_TIFF_ENTRIES = 300_000

_MARKERS_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_START_OF_SCAN, APP1 = 0xDA, 0xE1
# Encoders write about 10. A scan that says nothing takes some bytes, and a walk over all of the picture.
_MOST_SCANS = 100


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


def read_jpeg_header(read: Callable[[int, int], bytes]) -> JpegHeader:
    """`read` answers up to so many bytes (first parameter) at an offset (second).

    Our own, since libvips only gives the size after shrink-on-load.
    """
    size: tuple[int, int] | None = None
    progressive = False
    exif: bytes | None = None
    app1: list[tuple[int, int]] = []
    pixels_at = 2
    for head, at, end in jpeg_segments(read):
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


def jpeg_segments(read: Callable[[int, int], bytes], at: int = 2) -> Iterator[tuple[bytes, int, int]]:
    """The first 10 bytes or fewer, start and end of each segment up to the pixels, or to what is none; also of each
    fill byte and each marker without a length. An end may lie behind that of the file.
    """
    for _ in range(_MOST_READS):
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


def refuse_many_scans(fd: int, start: int) -> None:
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


def png_size(fd: int) -> tuple[int, int]:
    """Width and height; libpng refuses to tell those over a million."""
    ihdr = os.pread(fd, 8, 16)
    if len(ihdr) < 8:
        raise Rejected("damaged-image")
    width, height = struct.unpack(">II", ihdr)
    return width, height


def png_frames(fd: int) -> int:
    """Pictures in an APNG, its default image among them; 1 in any other PNG. Refuses a file that ends before IEND does.

    A decoder stops after the last line of pixels, so nobody else notices a missing end.
    """
    declared, controls, first = 0, 0, b""
    for kind, at, _ in png_chunks(partial(os.pread, fd)):
        if kind == b"IEND":
            # An animation that contradicts itself is shown as its default image.
            return controls + (first == b"IDAT") if declared and declared == controls else 1
        if kind in {b"IDAT", b"fcTL"}:
            first = first or kind
        if kind == b"acTL":
            declared = int.from_bytes(os.pread(fd, 4, at + 8), "big")
        elif kind == b"fcTL":
            controls += 1
    raise Rejected("damaged-image")


def png_chunks(read: Callable[[int, int], bytes]) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each chunk whose first 12 bytes are there. An end may lie behind that of the file."""
    at = 8
    for _ in range(_MOST_READS):
        head = read(12, at)
        if len(head) < 12:
            return
        end = at + 12 + int.from_bytes(head[:4], "big")
        yield head[4:8], at, end
        at = end


def refuse_cut_gif(fd: int) -> None:
    """Refuse a GIF that ends inside a block. libvips shows an animation cut short as one with fewer frames.

    Only the end mark may be missing: no pixel is, and such files are about.
    """
    with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as data:
        try:
            at = 13 + colour_table_bytes(data[10])
            while at < len(data):
                if data[at] == 0x2C:  # an image
                    at += 11 + colour_table_bytes(data[at + 9])
                elif data[at] == 0x21:  # an extension
                    at += 2
                else:
                    return
                while size := data[at]:
                    at += size + 1
                at += 1
        except IndexError:
            raise Rejected("damaged-image") from None


def colour_table_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def webp_frames(fd: int) -> int:
    """Frames of a WebP; 1 where it is no animation. libwebp's own count takes a time that grows with their square."""
    head = os.pread(fd, 21, 0)
    if head[12:16] != b"VP8X" or len(head) < 21 or not head[20] & 0x02:
        return 1
    at, frames = 12, 0
    for _ in range(_MOST_READS):
        head = os.pread(fd, 8, at)
        if len(head) < 8:
            return frames
        frames += head[:4] == b"ANMF"
        size = int.from_bytes(head[4:], "little")
        at += 8 + size + size % 2
    raise Rejected("damaged-image")


def webp_has_alpha(fd: int) -> bool:
    """The flag of an extended WebP. libvips gives every animation an alpha band."""
    head = os.pread(fd, 21, 0)
    return head[12:16] == b"VP8X" and bool(head[20] & 0x10)


def tiff_false_orientations(fd: int) -> list[tuple[int, bytes]]:
    """Entries of any page whose orientation is not 1 to 8: where each lies, and one that says 1 to put there."""
    head = os.pread(fd, 16, 0)
    order = "<" if head[:2] == b"II" else ">"
    big = head[2:4] in {b"+\0", b"\0+"}
    count_code, offset_code, entry_code = ("Q", "Q", "HHQ8s") if big else ("H", "I", "HHI4s")
    count_bytes, offset_bytes = struct.calcsize(order + count_code), struct.calcsize(order + offset_code)
    entry_bytes = struct.calcsize(order + entry_code)
    upright = struct.pack(order + entry_code, _ORIENTATION, 3, 1, struct.pack(order + "H", 1))
    stored = os.fstat(fd).st_size
    seen: set[int] = set()
    false = []
    left = MOST_TIFF_ENTRIES
    at = int.from_bytes(head[offset_bytes : 2 * offset_bytes], "little" if order == "<" else "big")
    while left > 0 and 0 < at < stored and at not in seen:
        seen.add(at)
        count = os.pread(fd, count_bytes, at)
        if len(count) < count_bytes:
            break
        (entries,) = struct.unpack(order + count_code, count)
        left -= max(entries, 1)
        if left < 0:
            break
        start = at + count_bytes
        table = os.pread(fd, entries * entry_bytes + offset_bytes, start)
        if len(table) < entries * entry_bytes + offset_bytes:
            break
        for place in range(0, entries * entry_bytes, entry_bytes):
            tag, kind, _, value = struct.unpack_from(order + entry_code, table, place)
            if tag == _ORIENTATION:
                code = {1: "B", 3: "H", 4: "I"}.get(kind)
                if code is None or not 1 <= struct.unpack_from(order + code, value)[0] <= 8:
                    false.append((start + place, upright))
        (at,) = struct.unpack_from(order + offset_code, table, entries * entry_bytes)
    return false


def refuse_unreadable_heif_items(fd: int) -> None:
    """Refuse a HEIF whose item types or names are no text, of which pi_heif 1.4 makes none, and uses it: the process
    dies.
    """
    stored = os.fstat(fd).st_size
    at = 0
    for _ in range(_MOST_READS):
        if at + 8 > stored:
            return
        head = os.pread(fd, 16, at)
        size = int.from_bytes(head[:4], "big")
        if size == 1:  # told in 64 bits
            size = int.from_bytes(head[8:], "big")
        elif size == 0:  # to the end of the file
            size = stored
        if head[4:8] == b"meta":
            _refuse_unreadable_items(os.pread(fd, min(size, stored), at))
        at += max(size, 8)
    raise Rejected("damaged-image")


def _refuse_unreadable_items(meta: bytes) -> None:
    at = meta.find(b"infe")
    while at != -1:
        size = int.from_bytes(meta[max(0, at - 4) : at], "big")
        ids = 4 if meta[at + 4 : at + 5] == b"\x03" else 2
        try:
            meta[at + 8 + ids + 2 : max(at, at - 4 + size)].decode()
        except UnicodeDecodeError:
            raise Rejected("damaged-image") from None
        at = meta.find(b"infe", at + 4)
