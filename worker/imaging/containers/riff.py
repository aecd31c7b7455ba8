"""Chunks of a RIFF file, which WebP is (RFC 9649, section 2.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

# A file with more chunks than this is no picture but an attempt to keep us busy: 0.1 s. Callers hold them against it.
MAX_CHUNKS = 100_000


def chunks(read: Callable[[int, int], bytes]) -> Iterator[tuple[bytes, int, int]]:
    """Kind, and start and end of the contents, of each chunk whose head is there. They may lie behind the file's end.
    `read` returns up to `size` bytes (first parameter) from an offset (second).
    """
    at = 12
    while len(head := read(8, at)) == 8:
        size = int.from_bytes(head[4:], "little")
        yield head[:4], at + 8, at + 8 + size
        at += 8 + size + size % 2
