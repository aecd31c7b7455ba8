"""The protocol between a worker and its decoders.

A group of requests comes through a socket as one message: a length, then msgpack, and the descriptors of all files.
Each request gets a response of its own, in the same order: the token of the request, a length, then msgpack. Responses
go through a pipe, which cannot carry descriptors. Every result is checked, because a hostile picture may control the
decoder.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence, Sized
from functools import partial
from itertools import chain
from typing import Annotated, Any, TypeAlias

import msgspec

from service.images.probe import (
    MAX_EXIF_BYTES,
    MAX_EXIF_LIST_ITEMS,
    MAX_EXIF_TEXT_CHARS,
    MAX_PAGES,
    MAX_PREVIEW_BYTES,
    MAX_PREVIEW_SIDE,
    Probe,
)
from service.media_types import HEAD_BYTES, MIME_TYPES, sniff
from service.renditions.transformation import MAX_PIXELS, MAX_SIDE, Transformation
from worker.file_headers import PictureFile, Read, avif_size, jpeg_frame, read_size

LENGTH = struct.Struct("<I")
# Random bytes that a response repeats, so that a decoder cannot prepare it before its request or send it for another
# one.
TOKEN_BYTES = 8
GREETING_TOKEN = bytes(TOKEN_BYTES)
HEADER_BYTES = TOKEN_BYTES + LENGTH.size
# Requests of one message. Four saved no more with 16 uploads in flight, and their responses came later.
MAX_GROUP = 2
# Of one message: the picture of each request, or one picture and its watermark.
MAX_FILES = 2
# The limit of every response without a file or parts of one: a greeting, EXIF, a preview, an error message.
MAX_METADATA_BYTES = 64 << 10
MAX_CAUSE_CHARS = 200


class InvalidResponse(ConnectionError):
    """A response that a decoder never sends if it is not compromised. The process is not used again."""


class ProbeRequest(msgspec.Struct, frozen=True, tag="probe"):
    """Probe a picture. Has one file, the picture."""

    max_pixels: int


class RenderRequest(msgspec.Struct, frozen=True, tag="render"):
    """Render a rendition. Has the file of the picture, and that of the watermark if the transformation has one."""

    transformation: Transformation
    max_pixels: int


class LocationRequest(msgspec.Struct, frozen=True, tag="location"):
    """Find the bytes of the file that contain the location where the picture was taken."""


Request: TypeAlias = ProbeRequest | RenderRequest | LocationRequest


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """One request of a message, with its token and the number of its files among those of the message."""

    token: bytes
    request: Request
    file_count: int


class Rendered(msgspec.Struct, frozen=True):
    """A complete picture file."""

    data: bytes


class Patches(msgspec.Struct, frozen=True):
    """Offsets, and the bytes to write there over a copy of the file, so that it no longer contains a location."""

    patches: Sequence[tuple[int, bytes]]


# Printable ASCII: a decoder may be hostile, and clients read this.
_Kind = Annotated[str, msgspec.Meta(max_length=64, pattern="^[ -~]+\\Z")]


class Rejection(msgspec.Struct, frozen=True):
    """The picture is refused, with an error code of the API. `kind` names what is not supported, as in `Rejected`."""

    code: str
    kind: _Kind | None = None


class ReadError(msgspec.Struct, frozen=True):
    """The file could not be read. The picture is not to blame."""

    cause: Annotated[str, msgspec.Meta(max_length=MAX_CAUSE_CHARS)]


Result: TypeAlias = Probe | Rendered | Patches | Rejection | ReadError


# Bounded, so that sums are finite whatever a decoder sends.
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class Response(msgspec.Struct, frozen=True, omit_defaults=True):
    """One result. `seconds` is how long it took, `cpu_s` the CPU time of the process since it started. The first
    response of a process is a greeting: it has no result, and names the `missing` parts of the sandbox.
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
_requests = msgspec.msgpack.Decoder(list[Envelope])
_responses = msgspec.msgpack.Decoder(Response)


def frame(payload: bytes) -> bytes:
    return LENGTH.pack(len(payload)) + payload


def encode_requests(group: Sequence[Envelope]) -> bytes:
    return frame(_encoder.encode(group))


def decode_requests(payload: bytes) -> list[Envelope]:
    return _requests.decode(payload)


def encode_response(response: Response) -> bytes:
    return frame(_encoder.encode(response))


def decode_response(payload: bytes | memoryview) -> Response:
    """Raises InvalidResponse if the payload is not a valid message."""
    try:
        return _responses.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:  # ValueError: invalid UTF-8
        raise InvalidResponse("not a valid message") from error


# The checks of results. A decoder can still lie within these bounds, e.g. about colours. It cannot make the worker read
# more bytes than the response to a request may have, nor put values into rows, files and responses that an honest
# decoder sends.

# Noise in the best quality takes 5 as JPEG, and less in other formats. EXIF and XMP of a rendition have 60 KB each.
_BYTES_PER_PIXEL = 6
_MAX_HEADERS_BYTES = 1 << 20
_MAX_FILE_BYTES = 256 << 20
# Number of patches, and the bytes that msgpack needs for each.
_MAX_PATCHES = 300_000
_PATCH_OVERHEAD_BYTES = 16
# The maximum of PostgreSQL's type integer.
_MAX_SOURCE_SIDE = (1 << 31) - 1

_SOF0 = 0xC0  # the marker of a baseline JPEG's frame
_MAX_TAG_NAME_CHARS = 64

_REJECTION_CODES: dict[type[Request], frozenset[str]] = {
    ProbeRequest: frozenset({"unsupported-image", "damaged-image", "too-many-pixels", "probe-failed"}),
    RenderRequest: frozenset(
        {"unsupported-image", "damaged-image", "too-many-pixels", "probe-failed", "rendition-too-large"}
    ),
    LocationRequest: frozenset({"unsupported-image"}),
}


def max_response_bytes(request: Request, picture: PictureFile) -> int:
    """Returns the maximum size of the response to a request."""
    match request:
        case RenderRequest(transformation=transformation):
            pixels = MAX_PIXELS if _may_be_animated(transformation) else math.prod(_max_size(transformation))
            return min(_MAX_FILE_BYTES, _MAX_HEADERS_BYTES + _BYTES_PER_PIXEL * pixels)
        case LocationRequest():
            return MAX_METADATA_BYTES + picture.size + _PATCH_OVERHEAD_BYTES * min(picture.size, _MAX_PATCHES)
        case ProbeRequest():
            return MAX_METADATA_BYTES


def check_result(request: Request, picture: PictureFile, result: Result) -> None:
    """Raises InvalidResponse for a result that a decoder never sends if it is not compromised."""
    match request, result:
        case ProbeRequest(max_pixels=max_pixels), Probe():
            _check_probe(result, picture, max_pixels)
        case RenderRequest(transformation=transformation), Rendered(data):
            _check_rendition(data, transformation)
        case LocationRequest(), Patches(patches):
            _check_patches(patches, picture.size)
        case _, Rejection(code, kind):
            _require(code in _REJECTION_CODES[type(request)], "an error code of another request")
            _require(kind is None or code == "unsupported-image", "the kind of a supported picture")
        case _, ReadError():
            pass
        case _:
            raise InvalidResponse(f"a {type(result).__name__} for a {type(request).__name__}")


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise InvalidResponse(reason)


def _check_probe(probe: Probe, picture: PictureFile, max_pixels: int) -> None:
    # An SVG is not always recognised by its head: it may begin with a long comment, and may be compressed.
    format_ = picture.format or "svg"
    _require(probe.format in MIME_TYPES and probe.format == format_, "another format than the file's")
    _require(1 <= probe.pages <= MAX_PAGES, "an invalid number of pages")
    sides = (probe.width, probe.height)
    _require(min(sides) >= 1 and max(sides) <= _MAX_SOURCE_SIDE, "an invalid width or height")
    _require(probe.width * probe.height * probe.pages <= max_pixels, "too many pixels")
    _require(1 <= probe.orientation <= 8, "an invalid orientation")
    _require(_has_size(picture, sorted(sides)), "another size than the file's")
    _check_exif(probe.exif)
    _check_preview(probe.mini_preview)


def _has_size(picture: PictureFile, sides: Sequence[int]) -> bool:
    if picture.header_size is None:
        return True
    header = sorted(picture.header_size)
    if picture.format == "gif":  # its first frame may be larger than the logical screen
        return sides[0] >= header[0] and sides[1] >= header[1]
    return list(sides) == header


def _check_exif(exif: Mapping[str, object]) -> None:
    """Checks that EXIF is valid in JSON and PostgreSQL: no NUL, no infinite numbers. msgpack has already refused lone
    surrogates.

    Checks all tags at once: a loop over them takes longer than all other checks.
    """
    names = "".join(exif)
    lengths = {len(name) for name in exif}
    _require(not exif or (names.isascii() and names.isalnum() and min(lengths) > 0), "an invalid tag name")
    _require(max(lengths, default=0) <= _MAX_TAG_NAME_CHARS, "a tag name that is too long")
    texts = [value for value in exif.values() if type(value) is str]
    _require("\0" not in "".join(texts) and _max_len(texts) <= MAX_EXIF_TEXT_CHARS, "an invalid tag text")
    lists = [value for value in exif.values() if type(value) is list]
    _require(_max_len(lists) <= MAX_EXIF_LIST_ITEMS, "a tag list that is too long")
    numbers = [*chain(*lists), *(value for value in exif.values() if type(value) not in {str, list})]
    _require({*map(type, numbers)} <= {int, float} and all(map(math.isfinite, numbers)), "an invalid tag value")
    _require(len(msgspec.json.encode(exif)) <= MAX_EXIF_BYTES, "too much EXIF")


def _max_len(values: Sequence[Sized]) -> int:
    return max(map(len, values), default=0)


def _check_preview(data: bytes) -> None:
    """Checks that the preview is a complete baseline JPEG, by its segments."""
    _require(len(data) <= MAX_PREVIEW_BYTES, "a preview with too many bytes")
    frame = jpeg_frame(_reader(data)) if data.startswith(b"\xff\xd8\xff") and data.endswith(b"\xff\xd9") else None
    _require(frame is not None and frame.marker == _SOF0, "a preview that is not a baseline JPEG")
    _require(
        frame is not None and min(frame[1:]) >= 1 and max(frame[1:]) <= MAX_PREVIEW_SIDE, "a preview that is too large"
    )


def _check_rendition(data: bytes, transformation: Transformation) -> None:
    head = data[:HEAD_BYTES]
    _require(sniff(head) == transformation.format, "a rendition of another format")
    size = avif_size(head) if transformation.format == "avif" else read_size(transformation.format, _reader(data))
    width, height = _max_size(transformation)
    _require(size is not None and 1 <= size[0] <= width and 1 <= size[1] <= height, "a rendition of another size")


def _max_size(transformation: Transformation) -> tuple[int, int]:
    """Returns the maximum width and height of the rendition. `percent` and a missing side depend on the picture."""
    return transformation.width or MAX_SIDE, transformation.height or MAX_SIDE


def _may_be_animated(transformation: Transformation) -> bool:
    return transformation.format in {"gif", "webp"} and transformation.frame is None


def _check_patches(patches: Sequence[tuple[int, bytes]], size: int) -> None:
    """Checks that patches are in the order of the file, within it, and do not overlap."""
    _require(len(patches) <= _MAX_PATCHES, "too many patches")
    end = 0
    for offset, data in patches:
        _require(end <= offset and offset + len(data) <= size, "a patch outside of the file or over another one")
        end = offset + len(data)


def _reader(data: bytes) -> Read:
    return partial(_slice, data)


def _slice(data: bytes, size: int, at: int) -> bytes:
    return data[at : at + size]
