"""The reader of a decoder's responses: it buffers no more than it expects."""

from __future__ import annotations

import asyncio

import pytest

from worker.sandbox.messages import LENGTH, InvalidResponse, ReadError, Response, encode_response
from worker.sandbox.response_reader import ResponseReader

TOKENS = [b"first 01", b"second 2", b"third 03"]
CAUSES = ["a", "b", "c"]
FRAMES = [
    token + encode_response(Response(0, 0, read_error=ReadError(cause)))
    for token, cause in zip(TOKENS, CAUSES, strict=True)
]
MAX_BYTES = 100


class Transport(asyncio.ReadTransport):
    is_closed = False

    def close(self) -> None:
        self.is_closed = True


def connected(*tokens: bytes) -> tuple[ResponseReader, Transport]:
    reader, transport = ResponseReader(), Transport()
    reader.connection_made(transport)
    for token in tokens:
        reader.expect(token, MAX_BYTES)
    return reader, transport


async def receive_causes(reader: ResponseReader, count: int) -> list[str]:
    responses = [await reader.receive() for _ in range(count)]
    return [response.read_error.cause for response in responses if response.read_error is not None]


@pytest.mark.parametrize("size", [1, 7, len(FRAMES[0]), len(FRAMES[0]) + 3, 1000])
async def test_responses_arrive_in_pieces_of_any_size(size: int) -> None:
    reader, transport = connected(*TOKENS)
    data = b"".join(FRAMES)
    for at in range(0, len(data), size):
        reader.data_received(data[at : at + size])
    assert await receive_causes(reader, 3) == CAUSES
    assert not transport.is_closed


async def test_receive_waits_for_a_complete_response() -> None:
    reader, _ = connected(TOKENS[0])
    receiving = asyncio.create_task(reader.receive())
    reader.data_received(FRAMES[0][:-1])
    await asyncio.sleep(0)
    assert not receiving.done()
    reader.data_received(FRAMES[0][-1:])
    assert (await receiving).read_error == ReadError("a")


@pytest.mark.parametrize(
    "data",
    [
        TOKENS[1] + LENGTH.pack(1),
        TOKENS[0] + LENGTH.pack(MAX_BYTES + 1),
        TOKENS[0] + LENGTH.pack(2) + b"no",
        FRAMES[0] + FRAMES[0],
    ],
    ids=["another token", "too long", "no message", "twice"],
)
async def test_nothing_is_read_after_an_invalid_response(data: bytes) -> None:
    reader, transport = connected(TOKENS[0])
    reader.data_received(data)
    assert transport.is_closed
    if data.startswith(FRAMES[0]):
        assert await receive_causes(reader, 1) == ["a"]
    for _ in range(2):
        with pytest.raises(InvalidResponse):
            await reader.receive()


async def test_responses_before_the_end_of_the_pipe_count() -> None:
    reader, _ = connected(*TOKENS)
    reader.data_received(FRAMES[0] + FRAMES[1][:-1])
    reader.connection_lost(None)
    assert await receive_causes(reader, 1) == ["a"]
    with pytest.raises(asyncio.IncompleteReadError):
        await reader.receive()
