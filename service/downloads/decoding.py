"""Decodes content codings (RFC 9110, section 8.4.1), which some origins apply although the request accepts none.

aiohttp's own decoding knows neither `x-gzip` nor a second coding.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Iterator

MAX_CODINGS = 2
# Members of one gzip stream (RFC 1952, section 2.2). Empty ones cost time and yield no byte that a limit could count.
MAX_MEMBERS = 100
# Bytes that a coding may consume beyond twice the bytes that it yields. Empty blocks of deflate yield nothing, and as
# the content of a second coding 80 MB of them arrive as 100 KB.
MAX_EMPTY_BYTES = 1 << 20
_CHUNK_BYTES = 64 * 1024
_GZIP_BITS, _ZLIB_BITS = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS
_GZIP = frozenset({"gzip", "x-gzip"})
_GZIP_MAGIC, _MAGIC_BYTES = b"\x1f\x8b", 2
# Codings that no library here decodes. Other names, e.g. those that S3 stores for `aws-chunked`, do not change the
# bytes.
_UNSUPPORTED = frozenset({"br", "compress", "dcb", "dcz", "x-compress", "zstd"})


class DecodingError(ValueError):
    """A body does not have the coding that its header names, or the coding is not supported."""


def parse_codings(header: str) -> list[str]:
    """Returns the codings of a Content-Encoding header in the order of their application. Raises DecodingError."""
    names = [name.strip().lower() for name in header.split(",")]
    if not _UNSUPPORTED.isdisjoint(names):
        raise DecodingError("an unsupported coding")
    codings = [name for name in names if name in _GZIP or name == "deflate"]
    if len(codings) > MAX_CODINGS:
        raise DecodingError("too many codings")
    return codings


def decode(chunks: AsyncIterator[bytes], codings: list[str]) -> AsyncIterator[bytes]:
    """Yields the decoded bytes in chunks of at most 64 KiB. Raises DecodingError, and the errors of `chunks`."""
    for coding in reversed(codings):
        chunks = _inflate(chunks, _Inflater(coding))
    return chunks


async def _inflate(chunks: AsyncIterator[bytes], inflater: _Inflater) -> AsyncIterator[bytes]:
    try:
        async for chunk in chunks:
            for decoded in inflater.feed(chunk):
                yield decoded
    except zlib.error as error:
        raise DecodingError("bytes of another coding") from error
    if not inflater.is_complete:
        raise DecodingError("the end is missing")


class _Inflater:
    """Decodes gzip, of one member or several, or deflate. It skips bytes after the end, as gzip and browsers do."""

    def __init__(self, coding: str) -> None:
        self._gzip = coding in _GZIP
        self._stream = zlib.decompressobj()
        self._members = 0
        self._consumed = self._yielded = 0
        self._pending = b""
        self._is_skipping = False

    @property
    def is_complete(self) -> bool:
        """Whether the last member has ended."""
        return self._stream.eof

    def feed(self, data: bytes) -> Iterator[bytes]:
        if not self._is_skipping:
            self._consumed += len(data)
        if self._consumed > MAX_EMPTY_BYTES + 2 * self._yielded:
            raise DecodingError("too many bytes without content")
        data, self._pending = self._pending + data, b""
        while data and not self._is_skipping:
            if self._members == 0 or self._stream.eof:
                if len(data) < _MAGIC_BYTES:
                    self._pending = data
                    return
                self._start_member(data[:_MAGIC_BYTES])
            if not self._is_skipping:
                yield from self._drain(data)
                data = self._stream.unused_data

    def _start_member(self, magic: bytes) -> None:
        if self._members and (not self._gzip or magic != _GZIP_MAGIC):
            self._is_skipping = True
            return
        if self._members == MAX_MEMBERS:
            raise DecodingError("too many members")
        self._members += 1
        # RFC 1950, section 2.2: method 8, and a multiple of 31. Some servers send deflate without this header.
        has_header = magic[0] & 15 == 8 and int.from_bytes(magic) % 31 == 0
        self._stream = zlib.decompressobj(_GZIP_BITS if self._gzip else _ZLIB_BITS if has_header else -_ZLIB_BITS)

    def _drain(self, data: bytes) -> Iterator[bytes]:
        while not self._stream.eof:
            decoded = self._stream.decompress(data, _CHUNK_BYTES)
            data = self._stream.unconsumed_tail
            if decoded:
                self._yielded += len(decoded)
                yield decoded
            if not data and len(decoded) < _CHUNK_BYTES:  # after a full chunk the stream may hold more
                return
