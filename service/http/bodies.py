"""The body of a request: the bytes of one file, raw or in a form; or a small JSON document.

A form is multipart/form-data (RFC 7578): one file, and text fields before and after it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias, TypeVar

import msgspec
from aiohttp import BodyPartReader, ClientError, HttpVersion11, MultipartReader, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestPayloadError
from multidict import CIMultiDictProxy

from service.errors import ServiceError
from service.ids import KEY_PATTERN

Value = TypeVar("Value")

_POLL_INTERVAL_S = 0.5
MAX_JSON_BYTES = 64 * 1024
# What aiohttp raises if a body is not what its headers say.
_MALFORMED = (AssertionError, ClientError, HttpProcessingError, RequestPayloadError, ValueError, RuntimeError)


def check_file_headers(request: web.Request) -> None:
    """Raises `unsupported-content-type` and `unsupported-content-encoding` if the body cannot hold a file."""
    if request.content_type != "multipart/form-data" and not is_binary(request.content_type):
        raise ServiceError("unsupported-content-type")
    check_content_encoding(request.headers)


def declared_length(request: web.Request) -> int | None:
    """Returns the length of the file according to the headers: None if chunked, and a lower bound for a form."""
    if not request.body_exists:
        return 0
    if request.content_length is not None and request.content_type == "multipart/form-data":
        return max(1, request.content_length - FORM_OVERHEAD_BYTES)
    return request.content_length


async def defer_100_continue(_: web.Request) -> None:
    """The `expect_handler` of routes with a body: the route handler sends 100 after it has checked the key and
    length.
    """


async def send_100_continue(request: web.Request) -> None:
    """Sends 100 Continue if the client waits for it."""
    if request.version == HttpVersion11 and "Expect" in request.headers:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the final response has not started


async def read_file(request: web.Request, on_field: OnField) -> AsyncIterator[bytes]:
    """Yields the bytes of the file as they arrive. A form's fields go to `on_field`, before the file or after it.

    Raises `invalid-body` for a form that does not hold exactly one file, and what `on_field` raises.
    """
    await send_100_continue(request)
    try:
        if request.content_type == "multipart/form-data":
            async for chunk in read_form(request, on_field):
                yield chunk
        else:
            while chunk := await request.content.readany():
                yield chunk
    except _MALFORMED as error:
        raise ServiceError("invalid-body") from error


@asynccontextmanager
async def cancel_on_disconnect(request: web.Request) -> AsyncIterator[None]:
    """Cancels the block when the client disconnects, and raises ConnectionResetError."""
    scope = asyncio.timeout(None)

    async def watch() -> None:
        while request.transport is not None:  # noqa: ASYNC110 - aiohttp has no event for it
            await asyncio.sleep(_POLL_INTERVAL_S)
        scope.reschedule(0)

    watcher = asyncio.create_task(watch())
    try:
        async with scope:
            yield
    except TimeoutError:
        if scope.expired():
            raise ConnectionResetError("the client has left") from None
        raise
    finally:
        watcher.cancel()


async def read_json(request: web.Request, kind: type[Value], timeout_s: float) -> Value:
    """Returns a JSON body of at most 64 KiB as a value of this type.

    Raises `invalid-body` with what is wrong, `unsupported-content-encoding`, `upload-too-large`, `upload-timeout`.
    """
    check_content_encoding(request.headers)
    body = bytearray()
    too_large = ServiceError("upload-too-large", f"A JSON body must have at most {MAX_JSON_BYTES} bytes.")
    if (request.content_length or 0) > MAX_JSON_BYTES:
        raise too_large
    await send_100_continue(request)
    try:
        async with asyncio.timeout(timeout_s):
            while chunk := await request.content.readany():
                body += chunk
                if len(body) > MAX_JSON_BYTES:
                    raise too_large
        return msgspec.json.decode(body, type=kind)
    except TimeoutError:
        raise ServiceError("upload-timeout") from None
    except msgspec.ValidationError as error:
        reason = KEY_PATTERN.sub("[key]", str(error))[:200]  # it quotes field names, which may be keys sent by mistake
        raise ServiceError("invalid-body", f"The JSON body is not valid: {reason}") from None
    except (msgspec.MsgspecError, *_MALFORMED) as error:
        raise ServiceError("invalid-body", "The body is not valid JSON.") from error


# Called with the name and the value of a field. An error that it raises ends the upload.
OnField: TypeAlias = Callable[[str, bytes], None]

_CHUNK_BYTES = 64 * 1024
# Lines around parts, and headers of parts, cost much more time than the bytes of a file.
MAX_PART_HEADERS = 16
MAX_LINES_AROUND_PARTS = 32
MAX_FORM_LINE_BYTES = 8190
MAX_FIELDS = 32
# All fields together, with their headers.
MAX_FIELD_BYTES = 64 * 1024
# The maximum around the file in a form: the fields, the boundaries and the headers of the file's part.
FORM_OVERHEAD_BYTES = MAX_FIELD_BYTES + 16 * 1024

# A quoted string (RFC 9110, section 5.6.4), also one without its closing quote.
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"?', re.DOTALL)
# RFC 2231 has `filename*`, `filename*0` and `filename*0*` too.
_FILE_NAME = re.compile(r"(?:^|[;,\s])filename(?:\*(?:[0-9]+\*?)?)?\s*=", re.IGNORECASE)
_EMPTY_FILE_NAME = re.compile(r'(?:^|[;,\s])filename\s*=\s*(?:""\s*)?(?:;|$)', re.IGNORECASE)
_NAME = re.compile(r'(?:^|[;,\s])name\s*=\s*(?:"(?P<quoted>[^"]*)"|(?P<token>[^;,\s"]+))', re.IGNORECASE)
_BLANKS = b"\xef\xbb\xbf \t\r\n"  # a byte order mark is three of them
_SVG = re.compile(rb"<(?:\?xml|!--|!DOCTYPE\s+svg|(?:\w+:)?svg[\s>/])", re.IGNORECASE)


def is_binary(content_type: str) -> bool:
    """Returns whether a file may have this type, in lower case and without parameters."""
    return content_type == "application/octet-stream" or content_type.startswith("image/")


def check_content_encoding(headers: CIMultiDictProxy[str]) -> None:
    """Raises `unsupported-content-encoding` if the headers of a request, or of a form's part, announce a compressed
    body: one megabyte could inflate to a gigabyte (RFC 9110, section 8.4).
    """
    codings = ",".join(headers.getall("Content-Encoding", ())).split(",")
    if any(coding.strip().lower() not in {"", "identity"} for coding in codings):
        raise ServiceError("unsupported-content-encoding")


class _Form(MultipartReader):
    """aiohttp's reader, with a bound for the lines outside of parts, which aiohttp skips one by one."""

    _lines = 0

    async def next(self) -> MultipartReader | BodyPartReader | None:
        """Returns the next part. aiohttp's own method fails at a field `_charset_`, which is a field like others here:
        the parameters are UTF-8.
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
        self._lines -= 1  # the boundary of a part; parts have a bound of their own
        self._last_part = await self.fetch_next_part()
        return self._last_part

    async def _readline(self) -> bytes:
        self._lines += 1
        if self._lines > MAX_LINES_AROUND_PARTS:
            raise ServiceError("invalid-body", "The form has too many lines outside its parts.")
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
            raise ServiceError("invalid-body", f"A form must have at most {MAX_FIELDS} fields besides its file.")
        self._add_bytes(sum(len(name) + len(value) for name, value in part.headers.items()))

    async def read(self, part: BodyPartReader, chunk: bytes) -> bytes:
        """Returns the value of a field that begins with `chunk`."""
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
            raise ServiceError(
                "invalid-body", f"The fields of a form must have at most {MAX_FIELD_BYTES} bytes in total."
            )


async def read_form(request: web.Request, on_field: OnField) -> AsyncIterator[bytes]:
    """Yields the bytes of the form's file. An empty file input counts as a field.

    Raises `invalid-body`, `empty-body`, `unsupported-content-encoding`, what `on_field` raises, and aiohttp's errors
    for a malformed form.
    """
    fields, has_file = _Fields(), False
    async for part in _Form(request.headers, request.content, max_headers=MAX_PART_HEADERS):
        if not isinstance(part, BodyPartReader):
            raise ServiceError("invalid-body", "Nested forms are not supported; send the file as a part of the form.")
        check_content_encoding(part.headers)
        chunk = await part.read_chunk(_CHUNK_BYTES)
        disposition = part.headers.get("Content-Disposition", "")
        if not chunk and _EMPTY_FILE_NAME.search(disposition):
            fields.add(part)
            continue
        if not _is_file(part, chunk):
            on_field(_find_name(disposition), await fields.read(part, chunk))
            continue
        if has_file:
            raise ServiceError("invalid-body", "A form must contain exactly one file; send one request for each image.")
        if part.headers.get("Content-Transfer-Encoding", "").strip().lower() == "quoted-printable":
            # aiohttp decodes chunk by chunk, and would break an escape that spans two chunks.
            raise ServiceError(
                "invalid-body", "Content-Transfer-Encoding: quoted-printable is not supported; send the file as binary."
            )
        has_file = True
        while chunk:
            yield part.decode(chunk)
            chunk = await part.read_chunk(_CHUNK_BYTES)
    if not has_file:
        raise ServiceError("empty-body", "The form contains no file; add one, or send an image URL as JSON.")


def _is_file(part: BodyPartReader, chunk: bytes) -> bool:
    """Returns whether a part is a file and not a text field, by its file name, its type, or its first chunk.

    Several clients send neither name nor type. Text contains no zero byte, and does not start like SVG.
    """
    content_type = part.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    is_named = _has_file_name(part.headers.get("Content-Disposition", ""))
    is_content = b"\0" in chunk or _SVG.match(chunk.lstrip(_BLANKS)) is not None
    return is_named or is_binary(content_type) or is_content


def _has_file_name(disposition: str) -> bool:
    """Also accepts a header that breaks the grammar, e.g. an unquoted name with spaces."""
    return _FILE_NAME.search(_QUOTED.sub('""', disposition)) is not None


def _find_name(disposition: str) -> str:
    """Returns the name of a field, or "" if it has none."""
    match = _NAME.search(disposition)
    return "" if match is None else match["quoted"] or match["token"] or ""
