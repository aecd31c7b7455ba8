"""The protocol between a worker and its decoders: the token of the request, a length, then msgpack.

A request comes through a socket, with the descriptors of its files. A response goes through a pipe, which cannot carry
descriptors.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

import msgspec

from service.images.probe import Probe
from service.renditions.transformation import Transformation

LENGTH = struct.Struct("<I")
# Random bytes that a response repeats, so that it can neither be made before its request nor belong to another one.
TOKEN_BYTES = 8
GREETING_TOKEN = bytes(TOKEN_BYTES)
HEADER_BYTES = TOKEN_BYTES + LENGTH.size
# A picture and its watermark.
MAX_FILES = 2
# The limit of every response that holds neither a file nor parts of one: a greeting, EXIF, a preview, an error message.
MAX_METADATA_BYTES = 64 << 10
MAX_CAUSE_CHARS = 200


class InvalidResponse(ConnectionError):
    """No honest decoder gives this response to the request. The process is not used again."""


class ProbeRequest(msgspec.Struct, frozen=True, tag="probe"):
    """Has one file, the picture."""

    max_pixels: int


class RenderRequest(msgspec.Struct, frozen=True, tag="render"):
    """Has the file of the picture, and that of its watermark if the transformation has one."""

    transformation: Transformation
    max_pixels: int


class LocationRequest(msgspec.Struct, frozen=True, tag="location"):
    """Asks for the bytes of the file that contain the location where the picture was taken."""


Request: TypeAlias = ProbeRequest | RenderRequest | LocationRequest


class Rendered(msgspec.Struct, frozen=True):
    """A whole picture file."""

    data: bytes


class Patches(msgspec.Struct, frozen=True):
    """Offsets, and the bytes to write there over a copy of the file, so that it contains no location any more."""

    patches: Sequence[tuple[int, bytes]]


# Printable ASCII: a decoder may be hostile, and clients read this.
_Kind = Annotated[str, msgspec.Meta(max_length=64, pattern="^[ -~]+\\Z")]


class Rejection(msgspec.Struct, frozen=True):
    """The picture is refused, with an error code of the API. `kind` names what is not supported, as in `Rejected`."""

    code: str
    kind: _Kind | None = None


class ReadError(msgspec.Struct, frozen=True):
    """The file could not be read, which is not the fault of the picture."""

    cause: Annotated[str, msgspec.Meta(max_length=MAX_CAUSE_CHARS)]


Result: TypeAlias = Probe | Rendered | Patches | Rejection | ReadError


# Finite, so that sums of them are too, whatever a decoder sends.
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class Response(msgspec.Struct, frozen=True, omit_defaults=True):
    """One result. `seconds` is how long it took, `cpu_s` the CPU time of the process since it started. The first
    response
    of a process is a greeting: it has no result, and names the `missing` parts of the sandbox.
    """

    seconds: _Seconds
    cpu_s: _Seconds
    probe: Probe | None = None
    rendered: Rendered | None = None
    patches: Patches | None = None
    rejection: Rejection | None = None
    read_error: ReadError | None = None
    missing: Sequence[str] = ()

    @classmethod
    def greeting(cls, *, cpu_s: float, missing: Sequence[str]) -> Response:
        return cls(0, cpu_s, missing=missing)

    @classmethod
    def of(cls, result: Result, *, seconds: float, cpu_s: float) -> Response:
        field: dict[str, Any] = {_FIELDS[type(result)]: result}
        return cls(seconds, cpu_s, **field)

    @property
    def result(self) -> Result:
        """Raises InvalidResponse if there is not exactly one."""
        fields = (self.probe, self.rendered, self.patches, self.rejection, self.read_error)
        results = [result for result in fields if result is not None]
        if len(results) != 1:
            raise InvalidResponse(f"{len(results)} results")
        return results[0]


_FIELDS: dict[type[Result], str] = {
    Probe: "probe",
    Rendered: "rendered",
    Patches: "patches",
    Rejection: "rejection",
    ReadError: "read_error",
}

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_responses = msgspec.msgpack.Decoder(Response)


def frame(payload: bytes) -> bytes:
    return LENGTH.pack(len(payload)) + payload


def encode_request(request: Request) -> bytes:
    return frame(_encoder.encode(request))


def decode_request(payload: bytes) -> Request:
    return _requests.decode(payload)


def encode_response(response: Response) -> bytes:
    return frame(_encoder.encode(response))


def decode_response(payload: bytes) -> Response:
    """Raises InvalidResponse if the payload is not a valid message."""
    try:
        return _responses.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:  # ValueError: invalid UTF-8
        raise InvalidResponse("not a valid message") from error
