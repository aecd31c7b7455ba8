"""The body of a request: the bytes of one file, raw or in a form; or a small JSON document."""

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
from service.http.multipart import FORM_OVERHEAD_BYTES, OnField, check_content_encoding, is_binary, read_form
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
    """The `expect_handler` of routes with a body: the handler sends 100, after it checked the key and the length."""


async def send_100_continue(request: web.Request) -> None:
    """Asks the client for the body, if it waits for that."""
    if request.version == HttpVersion11 and "Expect" in request.headers:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the final response has not begun


async def read_file(request: web.Request, on_field: OnField) -> AsyncIterator[bytes]:
    """Yields the bytes of the file as they arrive. A form's fields go to `on_field`, before the file or after it.

    Raises `invalid-body` for a form that does not hold exactly one file, and what `on_field` raises.
    """
    await send_100_continue(request)
    is_form = request.content_type == "multipart/form-data"
    chunks = read_form(request, on_field) if is_form else _read_raw(request)
    try:
        async for chunk in chunks:
            yield chunk
    except _MALFORMED as error:
        raise ServiceError("invalid-body") from error


async def _read_raw(request: web.Request) -> AsyncIterator[bytes]:
    while chunk := await request.content.readany():
        yield chunk


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
            async for chunk in _read_raw(request):
                body += chunk
                if len(body) > MAX_JSON_BYTES:
                    raise too_large
        return msgspec.json.decode(body, type=kind)
    except TimeoutError:
        raise ServiceError("upload-timeout") from None
    except msgspec.ValidationError as error:
        reason = KEY_PATTERN.sub("[key]", str(error))[:200]  # it names fields, and one may be a key sent by mistake
        raise ServiceError("invalid-body", f"The JSON body is not valid: {reason}") from None
    except (msgspec.MsgspecError, *_MALFORMED) as error:
        raise ServiceError("invalid-body", "The body is not valid JSON.") from error
