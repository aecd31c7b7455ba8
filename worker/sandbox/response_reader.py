"""Reads the responses of a decoder from its pipe."""

from __future__ import annotations

import asyncio
from collections import deque

from worker.sandbox.messages import (
    HEADER_BYTES,
    LENGTH,
    TOKEN_BYTES,
    InvalidResponse,
    Response,
    decode_response,
)


class ResponseReader(asyncio.Protocol):
    """Parses responses as they arrive, in the order of their requests.

    Buffers no more than the response that is expected next may have, and what one read returns.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None  # after it nothing is read
        self._transport: asyncio.BaseTransport | None = None
        self._expected: deque[tuple[bytes, int]] = deque()
        self._buffer = bytearray()
        self._responses: deque[Response] = deque()
        self._waiter: asyncio.Future[None] | None = None

    @property
    def has_response(self) -> bool:
        return bool(self._responses)

    def expect(self, token: bytes, max_bytes: int) -> None:
        """Expects a response of at most `max_bytes` after the earlier ones."""
        self._expected.append((token, max_bytes))

    async def receive(self) -> Response:
        """Returns the next response.

        Raises IncompleteReadError at the end of the pipe, and InvalidResponse if the response is not valid, longer than
        expected, or not expected at all.
        """
        while not self._responses:
            if self.error is not None:
                raise self.error
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._responses.popleft()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            while self.error is None and self._parse_next():
                pass
        except InvalidResponse as error:
            self._fail(error)
        if self._responses:
            self._wake()

    def connection_lost(self, _: Exception | None) -> None:
        self._fail(asyncio.IncompleteReadError(bytes(self._buffer[:HEADER_BYTES]), None))

    def _parse_next(self) -> bool:
        """Returns whether the buffer had a complete response, and removes it. Raises InvalidResponse."""
        if len(self._buffer) < HEADER_BYTES:
            return False
        token, max_bytes = self._expected[0] if self._expected else (b"", 0)
        if self._buffer[:TOKEN_BYTES] != token:
            raise InvalidResponse("the token of another request")
        (length,) = LENGTH.unpack_from(self._buffer, TOKEN_BYTES)
        if length > max_bytes:
            raise InvalidResponse(f"{length} bytes, maximum {max_bytes}")
        end = HEADER_BYTES + length
        if len(self._buffer) < end:
            return False
        with memoryview(self._buffer)[HEADER_BYTES:end] as payload:
            response = decode_response(payload)
        del self._buffer[:end]
        self._expected.popleft()
        self._responses.append(response)
        return True

    def _fail(self, error: Exception) -> None:
        if self.error is None:
            self.error = error
            self.close()
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
