"""Content codings (RFC 9110, section 8.4.1) that an origin applies although it was asked for none.

Our own and not aiohttp's, which knows no `x-gzip` and no second coding.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Iterator

MAX_CODINGS = 2
# Of one gzip stream (RFC 1952, section 2.2). Empty ones cost time and yield no byte that a limit would count.
MAX_MEMBERS = 100
# What a coding may take in beyond twice of what it yields. Empty blocks of deflate are bytes for nothing, and as the
# content of a second coding 80 MB of them arrive as 100 KB.
MAX_EMPTY_BYTES = 1 << 20
_PIECE_BYTES = 64 * 1024
_GZIP_BITS, _ZLIB_BITS = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS
_GZIP = frozenset({"gzip", "x-gzip"})
_GZIP_MAGIC, _MAGIC_BYTES = b"\x1f\x8b", 2
# What no library here decodes. Other names, such as those that S3 stores for `aws-chunked`, say nothing of the bytes.
_UNSUPPORTED = frozenset({"br", "compress", "dcb", "dcz", "x-compress", "zstd"})


class DecodingError(ValueError):
    """A body is not coded as its header says, or in a way that is not supported."""


def parse_codings(header: str) -> list[str]:
    """The codings that have to be undone, in the order in which they were applied. Raises DecodingError."""
    names = [name.strip().lower() for name in header.split(",")]
    if not _UNSUPPORTED.isdisjoint(names):
        raise DecodingError("an unsupported coding")
    codings = [name for name in names if name in _GZIP or name == "deflate"]
    if len(codings) > MAX_CODINGS:
        raise DecodingError("too many codings")
    return codings


def decode(chunks: AsyncIterator[bytes], codings: list[str]) -> AsyncIterator[bytes]:
    """The bytes before the codings were applied, in pieces of at most 64 KiB. Raises DecodingError and what `chunks`
    raises.
    """
    for coding in reversed(codings):
        chunks = _inflate(chunks, _Inflater(coding))
    return chunks


async def _inflate(chunks: AsyncIterator[bytes], inflater: _Inflater) -> AsyncIterator[bytes]:
    try:
        async for chunk in chunks:
            for piece in inflater.feed(chunk):
                yield piece
    except zlib.error as error:
        raise DecodingError("bytes of another coding") from error
    if not inflater.is_complete:
        raise DecodingError("the end is missing")


class _Inflater:
    """Undoes gzip, of one member or several, or deflate. What follows is skipped, as gzip and browsers do."""

    def __init__(self, coding: str) -> None:
        self._gzip = coding in _GZIP
        self._stream = zlib.decompressobj()
        self._streams = 0
        self._taken = self._yielded = 0
        self._pending = b""
        self._skips = False

    @property
    def is_complete(self) -> bool:
        return self._stream.eof

    def feed(self, data: bytes) -> Iterator[bytes]:
        if not self._skips:
            self._taken += len(data)
        if self._taken > MAX_EMPTY_BYTES + 2 * self._yielded:
            raise DecodingError("too many bytes for nothing")
        data, self._pending = self._pending + data, b""
        while data and not self._skips:
            if self._streams == 0 or self._stream.eof:
                if len(data) < _MAGIC_BYTES:
                    self._pending = data
                    return
                self._begin(data[:_MAGIC_BYTES])
            if not self._skips:
                yield from self._drain(data)
                data = self._stream.unused_data

    def _begin(self, magic: bytes) -> None:
        if self._streams and (not self._gzip or magic != _GZIP_MAGIC):
            self._skips = True
            return
        if self._streams == MAX_MEMBERS:
            raise DecodingError("too many members")
        self._streams += 1
        # RFC 1950, section 2.2: method 8, and a multiple of 31. Some servers send deflate without this head.
        has_head = magic[0] & 15 == 8 and int.from_bytes(magic) % 31 == 0
        self._stream = zlib.decompressobj(_GZIP_BITS if self._gzip else _ZLIB_BITS if has_head else -_ZLIB_BITS)

    def _drain(self, data: bytes) -> Iterator[bytes]:
        while not self._stream.eof:
            piece = self._stream.decompress(data, _PIECE_BYTES)
            data = self._stream.unconsumed_tail
            if piece:
                self._yielded += len(piece)
                yield piece
            if not data and len(piece) < _PIECE_BYTES:  # a full piece may leave more in the stream
                return
