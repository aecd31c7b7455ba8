"""Chunks of a PNG (PNG, third edition, 5.3), and the texts in some of them (11.3.3)."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

# A file with more chunks than this is no picture but an attempt to keep us busy: 0.1 s.
_MAX_CHUNKS = 100_000
TEXT_CHUNKS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
MAX_TEXT_BYTES = 4_000_000


def chunks(read: Callable[[int, int], bytes]) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each chunk whose first 12 bytes are there. An end may lie behind that of the file."""
    at = 8
    for _ in range(_MAX_CHUNKS):
        head = read(12, at)
        if len(head) < 12:
            return
        end = at + 12 + int.from_bytes(head[:4], "big")
        yield head[4:8], at, end
        at = end


@dataclass(frozen=True, slots=True)
class Text:
    """A chunk's text, which starts at this offset of its contents."""

    keyword: bytes
    start: int
    data: bytes
    packed: bool

    def unpack(self) -> bytes:
        """The text itself. Raises ValueError for one of more than MAX_TEXT_BYTES, and zlib.error."""
        if not self.packed:
            return self.data
        inflater = zlib.decompressobj()
        text = inflater.decompress(self.data, MAX_TEXT_BYTES)
        if inflater.unconsumed_tail:
            raise ValueError("a text longer than any profile")
        return text


def parse_text(kind: bytes, contents: bytes) -> Text | None:
    """The text of a chunk of TEXT_CHUNKS (PNG, third edition, 11.3.3); None if there is none."""
    keyword, end, rest = contents.partition(b"\0")
    if not end:
        return None
    packed = kind == b"zTXt"
    text = rest[packed:]
    if kind == b"iTXt":  # whether it is packed, how, its language, the keyword in that
        flags, (_, *texts) = rest[:2], rest[2:].split(b"\0", 2)
        if len(texts) < 2:
            return None
        packed, text = flags[:1] == b"\1", texts[1]
    return Text(keyword, len(contents) - len(text), text, packed)
