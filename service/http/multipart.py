"""multipart/form-data (RFC 7578): one file, and text fields before and after it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from typing import TypeAlias

from aiohttp import BodyPartReader, MultipartReader, web
from multidict import CIMultiDictProxy

from service.errors import ServiceError

# Takes the name and the value of a field. An error that it raises is that of the upload.
TakeField: TypeAlias = Callable[[str, bytes], None]

_CHUNK_BYTES = 64 * 1024
# The lines around parts and their headers cost much more time than the bytes of a picture.
MAX_PART_HEADERS = 16
MAX_LINES_AROUND_PARTS = 32
MAX_FORM_LINE_BYTES = 8190
MAX_FIELDS = 32
# Of all fields together, with their headers.
MAX_FIELD_BYTES = 64 * 1024
# What surrounds the file in a form, at most: the fields, the boundaries and the headers of the file's part.
FORM_OVERHEAD_BYTES = MAX_FIELD_BYTES + 16 * 1024

# A quoted string (RFC 9110, section 5.6.4), or one without an end.
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"?', re.DOTALL)
# Also as of RFC 2231: `filename*`, `filename*0`, `filename*0*`.
_FILE_NAME = re.compile(r"(?:^|[;,\s])filename(?:\*(?:[0-9]+\*?)?)?\s*=", re.IGNORECASE)
_EMPTY_FILE_NAME = re.compile(r'(?:^|[;,\s])filename\s*=\s*(?:""\s*)?(?:;|$)', re.IGNORECASE)
_NAME = re.compile(r'(?:^|[;,\s])name\s*=\s*(?:"(?P<quoted>[^"]*)"|(?P<token>[^;,\s"]+))', re.IGNORECASE)
_BLANKS = b"\xef\xbb\xbf \t\r\n"  # a byte order mark is three of them
_SVG = re.compile(rb"<(?:\?xml|!--|!DOCTYPE\s+svg|(?:\w+:)?svg[\s>/])", re.IGNORECASE)


def is_binary(content_type: str) -> bool:
    """Whether a picture may have this type, given in lower case and without parameters."""
    return content_type == "application/octet-stream" or content_type.startswith("image/")


def check_encoding(headers: CIMultiDictProxy[str]) -> None:
    """Raises `unsupported-content-encoding` if the headers, of a request or of a form's part, say that what follows is
    compressed: a megabyte may stand for a gigabyte (RFC 9110, section 8.4).
    """
    codings = ",".join(headers.getall("Content-Encoding", ())).split(",")
    if any(coding.strip().lower() not in {"", "identity"} for coding in codings):
        raise ServiceError("unsupported-content-encoding")


class _Form(MultipartReader):
    """aiohttp reads past a preamble line by line, however many there are."""

    _lines = 0

    async def next(self) -> MultipartReader | BodyPartReader | None:
        """The next part. aiohttp's own method fails at a field `_charset_`, which is a field like others here: the
        parameters are UTF-8.
        """
        if self._at_eof:
            return None
        await self._maybe_release_last_part()
        if self._at_bof:
            await self._read_until_first_boundary()
            self._at_bof = False
        else:
            await self._read_boundary()
        if self._at_eof:
            return None
        self._lines -= 1  # the boundary of a part, which is bounded otherwise
        self._last_part = await self.fetch_next_part()
        return self._last_part

    async def _readline(self) -> bytes:
        self._lines += 1
        if self._lines > MAX_LINES_AROUND_PARTS:
            raise ServiceError("invalid-body", "The form has too many lines outside its parts; send the file alone.")
        if self._unread:
            return self._unread.pop()
        # aiohttp joins a line piece by piece, which takes the square of its length if it comes byte by byte.
        return await self._content.readline(max_line_length=MAX_FORM_LINE_BYTES)


class _Fields:
    """Counts the fields of a form and their bytes."""

    def __init__(self) -> None:
        self._count = 0
        self._bytes = 0

    def add(self, part: BodyPartReader) -> None:
        self._count += 1
        if self._count > MAX_FIELDS:
            raise ServiceError("invalid-body", f"The form has more than {MAX_FIELDS} fields beside its file.")
        self._add_bytes(sum(len(name) + len(value) for name, value in part.headers.items()))

    async def read(self, part: BodyPartReader, chunk: bytes) -> bytes:
        """The value of a field that begins with this chunk."""
        self.add(part)
        value = bytearray()
        while chunk:
            self._add_bytes(len(chunk))
            value += chunk
            chunk = await part.read_chunk(_CHUNK_BYTES)
        return bytes(part.decode(value))

    def _add_bytes(self, size: int) -> None:
        self._bytes += size
        if self._bytes > MAX_FIELD_BYTES:
            raise ServiceError("invalid-body", f"The fields of the form have more than {MAX_FIELD_BYTES} bytes in all.")


async def read_form(request: web.Request, take_field: TakeField) -> AsyncIterator[bytes]:
    """The bytes of the form's file. A file input that was left empty counts as a field.

    Raises `invalid-body`, `empty-body`, `unsupported-content-encoding`, what `take_field` does, and aiohttp's errors
    for a malformed form.
    """
    fields, has_file = _Fields(), False
    async for part in _Form(request.headers, request.content, max_headers=MAX_PART_HEADERS):
        if not isinstance(part, BodyPartReader):
            raise ServiceError("invalid-body", "A part of the form is a form itself; send the file as a part.")
        check_encoding(part.headers)
        chunk = await part.read_chunk(_CHUNK_BYTES)
        disposition = part.headers.get("Content-Disposition", "")
        if not chunk and _EMPTY_FILE_NAME.search(disposition):
            fields.add(part)
            continue
        if not _is_file(part, chunk):
            take_field(_find_name(disposition), await fields.read(part, chunk))
            continue
        if has_file:
            raise ServiceError("invalid-body", "A form may hold one file only; send each image by itself.")
        if part.headers.get("Content-Transfer-Encoding", "").strip().lower() == "quoted-printable":
            # aiohttp decodes a piece at a time, and would spoil what is escaped across the end of one.
            raise ServiceError("invalid-body", "Send the form's file as it is, not quoted-printable.")
        has_file = True
        while chunk:
            yield part.decode(chunk)
            chunk = await part.read_chunk(_CHUNK_BYTES)
    if not has_file:
        raise ServiceError("empty-body", "The form holds no file; add one, or send a picture's URL as JSON.")


def _is_file(part: BodyPartReader, chunk: bytes) -> bool:
    """Whether a part is a file and no text field: by its file name, its type, or its first chunk, since several clients
    send neither name nor type. No text has a zero byte, and none starts as SVG does.
    """
    content_type = part.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    is_named = _has_file_name(part.headers.get("Content-Disposition", ""))
    is_picture = b"\0" in chunk or _SVG.match(chunk.lstrip(_BLANKS)) is not None
    return is_named or is_binary(content_type) or is_picture


def _has_file_name(disposition: str) -> bool:
    """Also in a header that breaks the grammar, such as one with spaces in a name without quotes."""
    return _FILE_NAME.search(_QUOTED.sub('""', disposition)) is not None


def _find_name(disposition: str) -> str:
    """The name of a field; empty if it has none."""
    match = _NAME.search(disposition)
    return "" if match is None else match["quoted"] or match["token"] or ""
