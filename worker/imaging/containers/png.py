"""Parses the chunks of a PNG (PNG, third edition, 5.3), and the texts in some of them (11.3.3)."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from worker.file_headers import Read

# More chunks than this are only meant to waste time: 0.1 s.
_MAX_CHUNKS = 100_000
TEXT_CHUNKS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
MAX_TEXT_BYTES = 4_000_000

XMP_KEYWORD = b"XML:com.adobe.xmp"
# ImageMagick and ExifTool write metadata as a text of hexadecimal digits: PNG had no chunk for EXIF before 2017.
PROFILE_KEYWORD = b"Raw profile type "
# A line with the profile's name, the number of its bytes, and their digits in lines. Possessive, because spaces would
# take quadratic time otherwise.
_PROFILE = re.compile(rb"\s*+(?:[^\n]++\n\s*+|\S++\s++)\d++\s([0-9a-fA-F\s]*+)\0*+\Z")


def chunks(read: Read) -> Iterator[tuple[bytes, int, int]]:
    """Yields kind, start and end of each chunk whose first 12 bytes are in the file.

    The end may be beyond the end of the file.
    """
    at = 8
    for _ in range(_MAX_CHUNKS):
        head = read(12, at)
        if len(head) < 12:
            return
        end = at + 12 + int.from_bytes(head[:4], "big")
        yield head[4:8], at, end
        at = end


def write_chunk(kind: bytes, contents: bytes) -> bytes:
    return len(contents).to_bytes(4) + kind + contents + zlib.crc32(kind + contents).to_bytes(4)


@dataclass(frozen=True, slots=True)
class Text:
    """A chunk's text: `data` starts at the offset `start` of the chunk's contents."""

    keyword: bytes
    start: int
    data: bytes
    is_compressed: bool

    def decompress(self) -> bytes:
        """Returns the text itself. Raises ValueError if it has more than MAX_TEXT_BYTES, and zlib.error."""
        if not self.is_compressed:
            return self.data
        inflater = zlib.decompressobj()
        text = inflater.decompress(self.data, MAX_TEXT_BYTES)
        if inflater.unconsumed_tail:
            raise ValueError("a text longer than any profile")
        return text


def parse_text(kind: bytes, contents: bytes) -> Text | None:
    """Returns the text of a chunk of TEXT_CHUNKS (PNG, third edition, 11.3.3), or None if it has none."""
    keyword, end, rest = contents.partition(b"\0")
    if not end:
        return None
    is_compressed = kind == b"zTXt"
    text = rest[is_compressed:]
    if kind == b"iTXt":  # compression flag and method, language tag, translated keyword
        flags, (_, *texts) = rest[:2], rest[2:].split(b"\0", 2)
        if len(texts) < 2:
            return None
        is_compressed, text = flags[:1] == b"\1", texts[1]
    return Text(keyword, len(contents) - len(text), text, is_compressed)


def decode_profile(text: bytes) -> bytes:
    """Returns the bytes of a text of hexadecimal digits. Raises ValueError if it is not such a text."""
    match = _PROFILE.match(text)
    if match is None:
        raise ValueError("no digits")
    return bytes.fromhex(match[1].decode())
