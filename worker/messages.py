"""What a worker and its children say to each other: a length, then msgpack."""

from __future__ import annotations

import struct
from typing import TypeAlias

import msgspec

from service.probes import Probe

LENGTH = struct.Struct("<I")
# A finding is some kilobytes: EXIF and the preview are bounded.
MAX_MESSAGE_BYTES = 1 << 20


class ProbeRequest(msgspec.Struct, frozen=True):
    path: str
    max_pixels: int


class Refusal(msgspec.Struct, frozen=True):
    """The picture is refused, with an error code of the API."""

    code: str


class Unreadable(msgspec.Struct, frozen=True):
    """The file could not be read, which says nothing about the picture."""

    cause: str


Answer: TypeAlias = Probe | Refusal | Unreadable


class _Envelope(msgspec.Struct, frozen=True, omit_defaults=True):
    probe: Probe | None = None
    refusal: Refusal | None = None
    unreadable: Unreadable | None = None


_encoder = msgspec.msgpack.Encoder()
_requests = msgspec.msgpack.Decoder(ProbeRequest)
_envelopes = msgspec.msgpack.Decoder(_Envelope)


def frame(payload: bytes) -> bytes:
    return LENGTH.pack(len(payload)) + payload


def encode_request(request: ProbeRequest) -> bytes:
    return frame(_encoder.encode(request))


def decode_request(payload: bytes) -> ProbeRequest:
    return _requests.decode(payload)


def encode_answer(answer: Answer) -> bytes:
    match answer:
        case Probe():
            envelope = _Envelope(probe=answer)
        case Refusal():
            envelope = _Envelope(refusal=answer)
        case Unreadable():
            envelope = _Envelope(unreadable=answer)
    return frame(_encoder.encode(envelope))


def decode_answer(payload: bytes) -> Answer:
    envelope = _envelopes.decode(payload)
    answer = envelope.probe or envelope.refusal or envelope.unreadable
    if answer is None:
        raise ConnectionError("an empty answer")
    return answer
