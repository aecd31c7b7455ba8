"""Chunks of a RIFF file, which WebP is (RFC 9649, section 2.3)."""

from __future__ import annotations

from collections.abc import Iterator

from worker.file_headers import Read

# More chunks than this are only meant to waste time: 0.1 s. Callers enforce the limit.
MAX_CHUNKS = 100_000


def chunks(read: Read) -> Iterator[tuple[bytes, int, int]]:
    """Yields kind, and start and end of the contents, of each chunk whose head is in the file.

    Start and end may be beyond the end of the file.
    """
    at = 12
    while len(head := read(8, at)) == 8:
        size = int.from_bytes(head[4:], "little")
        yield head[:4], at + 8, at + 8 + size
        at += 8 + size + size % 2
