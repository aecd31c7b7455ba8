"""What a request's body holds: the bytes of one image, raw or in a form; or a little JSON."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import msgspec
from aiohttp import ClientError, HttpVersion11, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestPayloadError

from service.errors import ServiceError
from service.http.multipart import FORM_OVERHEAD_BYTES, TakeField, check_encoding, is_binary, read_form
from service.ids import KEY_PATTERN

Value = TypeVar("Value")

_LOOK_S = 0.5
MAX_JSON_BYTES = 64 * 1024
# How aiohttp tells of a body that is not what its headers say.
_MALFORMED = (AssertionError, ClientError, HttpProcessingError, RequestPayloadError, ValueError, RuntimeError)


def check_content_type(request: web.Request) -> None:
    """Raises `unsupported-content-type`, which names the header to send."""
    if request.content_type != "multipart/form-data" and not is_binary(request.content_type):
        raise ServiceError("unsupported-content-type")


def declared_length(request: web.Request) -> int | None:
    """The length of the image as far as the headers tell: None if chunked; of a form, a lower bound."""
    if not request.body_exists:
        return 0
    if request.content_length is not None and request.content_type == "multipart/form-data":
        return max(1, request.content_length - FORM_OVERHEAD_BYTES)
    return request.content_length


async def expect_later(_: web.Request) -> None:
    """aiohttp's `expect_handler` of routes with a body: it is let in only after a look at the key and the length."""


async def let_continue(request: web.Request) -> None:
    """Ask for the body, where the client waits to be asked."""
    if request.version == HttpVersion11 and "Expect" in request.headers:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer itself has not begun


async def chunks(request: web.Request, take_field: TakeField) -> AsyncIterator[bytes]:
    """The image's bytes as they arrive. The fields of a form go to `take_field`, wherever they stand.

    Raises `invalid-body` for a form that does not hold exactly one file, and what `take_field` does.
    """
    await let_continue(request)
    is_form = request.content_type == "multipart/form-data"
    source = read_form(request, take_field) if is_form else _raw(request)
    try:
        async for chunk in source:
            yield chunk
    except _MALFORMED as error:
        raise ServiceError("invalid-body") from error


async def _raw(request: web.Request) -> AsyncIterator[bytes]:
    while chunk := await request.content.readany():
        yield chunk


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
