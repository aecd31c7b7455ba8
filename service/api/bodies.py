"""What a request's body holds: the bytes of one image, raw or as one file of multipart/form-data; or a little JSON."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import msgspec
from aiohttp import BodyPartReader, ClientError, HttpVersion11, MultipartReader, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestPayloadError
from multidict import CIMultiDictProxy

from service.errors import ServiceError
from service.ids import KEY_PATTERN

Value = TypeVar("Value")

_CHUNK_BYTES = 64 * 1024
_LOOK_S = 0.5
MAX_JSON_BYTES = 64 * 1024
# Of a form: its part's headers, and the lines around its parts, which cost much more time than the bytes of a picture.
MAX_PART_HEADERS = 16
MAX_LINES_AROUND_PARTS = 32
MAX_FORM_LINE_BYTES = 8190
# What surrounds the file in a form: boundaries and the part's headers.
_FORM_OVERHEAD_BYTES = 16 * 1024
# A quoted string (RFC 9110, section 5.6.4), or one without an end.
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"?', re.DOTALL)
# Also as of RFC 2231: `filename*`, `filename*0`, `filename*0*`.
_FILE_NAME = re.compile(r"(?:^|[;,\s])filename(?:\*(?:[0-9]+\*?)?)?\s*=", re.IGNORECASE)
_BLANKS = b"\xef\xbb\xbf \t\r\n"  # a byte order mark is three of them
# How aiohttp tells of a body that is not what its headers say.
_MALFORMED = (AssertionError, ClientError, HttpProcessingError, RequestPayloadError, ValueError, RuntimeError)


def check_content_type(request: web.Request) -> None:
    """Raises `unsupported-content-type`, which names the header to send."""
    if request.content_type != "multipart/form-data" and not _is_binary(request.content_type):
        raise ServiceError("unsupported-content-type")


def _is_binary(content_type: str) -> bool:
    """Whether a picture may have this type, given in lower case and without parameters."""
    return content_type == "application/octet-stream" or content_type.startswith("image/")


def check_encoding(headers: CIMultiDictProxy[str]) -> None:
    """Raises `unsupported-content-encoding` if the headers, of a request or of a form's part, say that what follows is
    compressed: a megabyte may stand for a gigabyte (RFC 9110, section 8.4).
    """
    codings = ",".join(headers.getall("Content-Encoding", ())).split(",")
    if any(coding.strip().lower() not in {"", "identity"} for coding in codings):
        raise ServiceError("unsupported-content-encoding")


def declared_length(request: web.Request) -> int | None:
    """The length of the image as far as the headers tell: None if chunked; of a form, a lower bound."""
    if not request.body_exists:
        return 0
    if request.content_length is not None and request.content_type == "multipart/form-data":
        return max(1, request.content_length - _FORM_OVERHEAD_BYTES)
    return request.content_length


async def expect_later(_: web.Request) -> None:
    """aiohttp's `expect_handler` of routes with a body: it is let in only after a look at the key and the length."""


async def let_continue(request: web.Request) -> None:
    """Ask for the body, where the client waits to be asked."""
    if request.version == HttpVersion11 and "Expect" in request.headers:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer itself has not begun


async def chunks(request: web.Request) -> AsyncIterator[bytes]:
    """The image's bytes as they arrive. Raises `invalid-body` for a form that is not exactly one file."""
    await let_continue(request)
    source = _form_file(request) if request.content_type == "multipart/form-data" else _raw(request)
    try:
        async for chunk in source:
            yield chunk
    except _MALFORMED as error:
        raise ServiceError("invalid-body") from error


async def _raw(request: web.Request) -> AsyncIterator[bytes]:
    while chunk := await request.content.readany():
        yield chunk


class _Form(MultipartReader):
    """aiohttp reads past a preamble line by line, however many there are."""

    _lines = 0

    async def _readline(self) -> bytes:
        self._lines += 1
        if self._lines > MAX_LINES_AROUND_PARTS:
            raise ServiceError("invalid-body", "The form has too many lines outside its file; send the file alone.")
        if self._unread:
            return self._unread.pop()
        # aiohttp joins a line piece by piece, which takes the square of its length if it comes byte by byte.
        return await self._content.readline(max_line_length=MAX_FORM_LINE_BYTES)


async def _form_file(request: web.Request) -> AsyncIterator[bytes]:
    has_file = False
    async for part in _Form(request.headers, request.content, max_headers=MAX_PART_HEADERS):
        chunk = await part.read_chunk(_CHUNK_BYTES) if isinstance(part, BodyPartReader) else b""
        if not isinstance(part, BodyPartReader) or not _is_file(part, chunk):
            raise ServiceError(
                "invalid-body",
                "A form may hold one file and nothing else; send parameters in the query string.",
            )
        check_encoding(part.headers)
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
        raise ServiceError("empty-body")


def _is_file(part: BodyPartReader, chunk: bytes) -> bool:
    """Whether a part is a file and no text field (RFC 7578): by its file name, its type, or its first chunk, since
    several clients send neither name nor type. No text has a zero byte, and no parameter starts with `<`, as SVG does.
    """
    content_type = part.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    is_named = _has_file_name(part.headers.get("Content-Disposition", ""))
    return is_named or _is_binary(content_type) or b"\0" in chunk or chunk.lstrip(_BLANKS).startswith(b"<")


def _has_file_name(disposition: str) -> bool:
    """Also in a header that breaks the grammar, such as one with spaces in a name without quotes."""
    return _FILE_NAME.search(_QUOTED.sub('""', disposition)) is not None


@asynccontextmanager
async def while_connected(request: web.Request) -> AsyncIterator[None]:
    """For work that nobody needs once the client is gone: it is cancelled then, and ConnectionResetError raised."""
    scope = asyncio.timeout(None)

    async def watch() -> None:
        while request.transport is not None:  # noqa: ASYNC110 - aiohttp tells nobody
            await asyncio.sleep(_LOOK_S)
        scope.reschedule(0)

    watcher = asyncio.create_task(watch())
    try:
        async with scope:
            yield
    except TimeoutError:
        if scope.expired():
            raise ConnectionResetError("the client is gone") from None
        raise
    finally:
        watcher.cancel()


async def read_json(request: web.Request, kind: type[Value], timeout_s: float) -> Value:
    """A body of at most 64 KiB as a value of this type.

    Raises `invalid-body` with what is wrong, `unsupported-content-encoding`, `upload-too-large`, `upload-timeout`.
    """
    check_encoding(request.headers)
    body = bytearray()
    too_large = ServiceError("upload-too-large", f"The JSON has more than {MAX_JSON_BYTES} bytes.")
    if (request.content_length or 0) > MAX_JSON_BYTES:
        raise too_large
    await let_continue(request)
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in _raw(request):
                body += chunk
                if len(body) > MAX_JSON_BYTES:
                    raise too_large
        return msgspec.json.decode(body, type=kind)
    except TimeoutError:
        raise ServiceError("upload-timeout") from None
    except msgspec.ValidationError as error:
        reason = KEY_PATTERN.sub("[key]", str(error))[:200]  # it names fields, and one may have been meant as the key
        raise ServiceError("invalid-body", f"The JSON does not fit what is expected: {reason}") from None
    except (msgspec.MsgspecError, *_MALFORMED) as error:
        raise ServiceError("invalid-body", "The body is not JSON.") from error
