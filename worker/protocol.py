"""What a worker and its children say to each other: a length, then msgpack."""

from __future__ import annotations

import struct

import msgspec

from service.probes import Probe

LENGTH = struct.Struct("<I")


class ProbeRequest(msgspec.Struct, frozen=True, array_like=True):
    path: str
    max_pixels: int


class Refusal(msgspec.Struct, frozen=True, array_like=True):
    """An error code of the API."""

    code: str


class _Answer(msgspec.Struct, frozen=True):
    probe: Probe | None = None
    refusal: Refusal | None = None


_encoder = msgspec.msgpack.Encoder()
_requests = msgspec.msgpack.Decoder(ProbeRequest)
_answers = msgspec.msgpack.Decoder(_Answer)


def frame(payload: bytes) -> bytes:
    return LENGTH.pack(len(payload)) + payload


def encode_request(request: ProbeRequest) -> bytes:
    return frame(_encoder.encode(request))


def decode_request(payload: bytes) -> ProbeRequest:
    return _requests.decode(payload)


def encode_answer(answer: Probe | Refusal) -> bytes:
    return frame(_encoder.encode(_Answer(probe=answer) if isinstance(answer, Probe) else _Answer(refusal=answer)))


def decode_answer(payload: bytes) -> Probe | Refusal:
    answer = _answers.decode(payload)
    if answer.probe is not None:
        return answer.probe
    assert answer.refusal is not None  # noqa: S101 - an answer holds one of the two
    return answer.refusal
