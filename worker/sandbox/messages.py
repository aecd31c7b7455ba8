"""What a worker and its children say to each other: a length, then msgpack.

A request comes through a socket, with the descriptors of its files; an answer goes through a pipe, which takes none.
Before each stands the token of the request.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

import msgspec

from service.images.probe import Probe
from service.renditions.transformation import Transformation

LENGTH = struct.Struct("<I")
# Random bytes, which an answer repeats: none can be made before its request, and none is taken for that of another.
TOKEN_BYTES = 8
GREETING_TOKEN = bytes(TOKEN_BYTES)
HEADER_BYTES = TOKEN_BYTES + LENGTH.size
# A picture and its watermark.
MAX_FILES = 2
# A greeting; EXIF, a preview, the words of an error. All answers but a file or parts of one are within it.
MAX_WORDS_BYTES = 64 << 10
MAX_CAUSE_CHARS = 200


class OddAnswer(ConnectionError):
    """What a child process says is no answer to its request: it is not to be asked again."""


class ProbeRequest(msgspec.Struct, frozen=True, tag="probe"):
    """Of one file, the picture."""

    max_pixels: int


class RenderRequest(msgspec.Struct, frozen=True, tag="render"):
    """Of the picture and, if there is one, its watermark."""

    transformation: Transformation
    max_pixels: int


class LocationRequest(msgspec.Struct, frozen=True, tag="location"):
    """Which bytes of the file tell where the picture was taken?"""


Request: TypeAlias = ProbeRequest | RenderRequest | LocationRequest


class Rendered(msgspec.Struct, frozen=True):
    """A whole picture file."""

    data: bytes


class Patches(msgspec.Struct, frozen=True):
    """What to write over a copy of the file, so that it tells no location any more: offsets and bytes."""

    patches: Sequence[tuple[int, bytes]]


# A child may be hostile, and a client reads this.
_Kind = Annotated[str, msgspec.Meta(max_length=64, pattern="^[ -~]+\\Z")]


class Refusal(msgspec.Struct, frozen=True):
    """The picture is refused, with an error code of the API; `kind` names what is not supported, as in `Rejected`."""

    code: str
    kind: _Kind | None = None


class Unreadable(msgspec.Struct, frozen=True):
    """The file could not be read, which says nothing about the picture."""

    cause: Annotated[str, msgspec.Meta(max_length=MAX_CAUSE_CHARS)]


Finding: TypeAlias = Probe | Rendered | Patches | Refusal | Unreadable


# Numbers that can be added up, whatever a child has become.
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """One finding. `seconds` is how long it took, `computed_s` the CPU time of the child in all its life so far. The
    first of a child is a greeting, without a finding, that names what the system lacks to confine it.
    """

    seconds: _Seconds
    computed_s: _Seconds
    probe: Probe | None = None
    rendered: Rendered | None = None
    patches: Patches | None = None
    refusal: Refusal | None = None
    unreadable: Unreadable | None = None
    unconfined: Sequence[str] = ()

    @classmethod
    def greeting(cls, *, computed_s: float, unconfined: Sequence[str]) -> Answer:
        return cls(0, computed_s, unconfined=unconfined)

    @classmethod
    def of(cls, finding: Finding, *, seconds: float, computed_s: float) -> Answer:
        kind: dict[str, Any] = {_FIELDS[type(finding)]: finding}
        return cls(seconds, computed_s, **kind)

    @property
    def finding(self) -> Finding:
        """Raises OddAnswer if there is not exactly one."""
        every = (self.probe, self.rendered, self.patches, self.refusal, self.unreadable)
        findings = [finding for finding in every if finding is not None]
        if len(findings) != 1:
            raise OddAnswer(f"{len(findings)} findings")
        return findings[0]


_FIELDS: dict[type[Finding], str] = {
    Probe: "probe",
    Rendered: "rendered",
    Patches: "patches",
    Refusal: "refusal",
    Unreadable: "unreadable",
}

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_answers = msgspec.msgpack.Decoder(Answer)


def frame(payload: bytes) -> bytes:
    return LENGTH.pack(len(payload)) + payload


def encode_request(request: Request) -> bytes:
    return frame(_encoder.encode(request))


def decode_request(payload: bytes) -> Request:
    return _requests.decode(payload)


def encode_answer(answer: Answer) -> bytes:
    return frame(_encoder.encode(answer))


def decode_answer(payload: bytes) -> Answer:
    """Raises OddAnswer for what is none."""
    try:
        return _answers.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:  # ValueError: no UTF-8
        raise OddAnswer("no message") from error
