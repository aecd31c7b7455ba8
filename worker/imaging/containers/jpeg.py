"""Parses the stream of a JPEG (ITU-T T.81, annex B): its segments up to the first scan, and its scans up to the end."""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterator

from worker.file_headers import Read

# More segments than this are only meant to waste time: 0.1 s.
MAX_SEGMENTS = 100_000

EOI, SOS, APP1, APP2, APP13 = 0xD9, 0xDA, 0xE1, 0xE2, 0xED
EXIF_HEAD = b"Exif\0"  # and one more byte
PROFILE_HEAD = b"ICC_PROFILE\0"  # ICC.1, annex B.4
XMP_HEAD = b"http://ns.adobe.com/xap/1.0/\0"
_MARKERS_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
# Decoders skip everything else: stray bytes, fill bytes of 0xFF, and 0xFF that is escaped by a zero.
_MARKER = re.compile(rb"\xff[^\x00\xff]")
# The entropy-coded data of a scan may have restart markers too.
_SCAN_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
# Stray bytes are searched in blocks that grow, because most files have few of them.
_MIN_BLOCK_BYTES, _MAX_BLOCK_BYTES = 16, 1 << 16


class Truncated(Exception):
    """The file ends before its scans do."""


def segments(read: Read, at: int = 2) -> Iterator[tuple[bytes, int, int]]:
    """Yields the first 10 bytes (or fewer), start and end of each segment, up to and including the first start of scan.

    A marker without a length is a segment too. An end may be beyond the end of the file. Stray bytes between segments,
    which some cameras and editors write, are skipped as in libjpeg (`next_marker`).
    """
    for _ in range(MAX_SEGMENTS):
        head = read(10, at)
        if len(head) > 1 and (head[0] != 0xFF or head[1] in {0x00, 0xFF}):
            at = _find_marker(read, at)
            head = read(10, at)
        if len(head) < 4 or head[1] == EOI:
            return
        end = at + 2
        if head[1] not in _MARKERS_WITHOUT_LENGTH:
            end += max(2, int.from_bytes(head[2:4]))  # if the length is too short, only the length is skipped
        yield head, at, end
        if head[1] == SOS:
            return
        at = end


def _find_marker(read: Read, at: int) -> int:
    """Returns the offset of the next marker, or the end of the file if there is none."""
    size = _MIN_BLOCK_BYTES
    while len(block := read(size, at)) > 1:
        if match := _MARKER.search(block):
            return at + match.start()
        at += len(block) - 1
        size = min(4 * size, _MAX_BLOCK_BYTES)
    return at + len(block)


def count_scans(data: bytes | mmap.mmap, at: int, limit: int) -> int:
    """Returns the number of scans up to the end of the picture, or `limit` if there are more.

    The entropy-coded data of the first scan starts at `at`. Raises Truncated if the file ends before the picture does,
    or has more markers than MAX_SEGMENTS.
    """
    scans = 1
    for _ in range(MAX_SEGMENTS):
        if scans == limit:
            return scans
        match = _SCAN_END.search(data, at)
        if match is None:
            raise Truncated
        at, marker = match.end(), data[match.end() - 1]
        if marker == EOI:
            return scans
        scans += marker == SOS
        if marker not in _MARKERS_WITHOUT_LENGTH:
            at += max(2, int.from_bytes(data[at : at + 2]))
    raise Truncated


def write_app1(head: bytes, contents: bytes) -> bytes:
    """Returns an application segment 1. Raises struct.error if it has more than 64 KB."""
    return struct.pack(">BBH", 0xFF, APP1, 2 + len(head) + len(contents)) + head + contents
