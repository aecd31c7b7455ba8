"""Checks what a child process answers, since a hostile picture may have become its master.

A child can still lie within these bounds, e.g. about colours. What it cannot do: make its worker take more bytes than
the answer to its question may have, or bring values into rows, files and responses that no honest child gives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Sized
from functools import partial
from itertools import chain

import msgspec

from service.images.probe import (
    MAX_EXIF_BYTES,
    MAX_EXIF_LIST_ITEMS,
    MAX_EXIF_TEXT_CHARS,
    MAX_PAGES,
    MAX_PREVIEW_BYTES,
    MAX_PREVIEW_SIDE,
    MIME_TYPES,
    Probe,
)
from service.renditions.transformation import MAX_PIXELS, MAX_SIDE, Transformation
from worker.file_headers import HEAD_BYTES, Read, avif_size, jpeg_frame, read_size, sniff
from worker.sandbox.files import PictureFile
from worker.sandbox.messages import (
    MAX_WORDS_BYTES,
    Finding,
    LocationRequest,
    OddAnswer,
    Patches,
    ProbeRequest,
    Refusal,
    Rendered,
    RenderRequest,
    Request,
    Unreadable,
)

# Noise in the best quality takes 5 as JPEG, and less in other formats; EXIF and XMP of a rendition have 60 KB each.
_BYTES_A_PIXEL = 6
_MAX_HEADERS_BYTES = 1 << 20
_MAX_FILE_BYTES = 256 << 20
# Patches, and what msgpack needs for one.
_MAX_PATCHES = 300_000
_PATCH_OVERHEAD_BYTES = 16
# Columns of type integer.
_MAX_SIDE_OF_SOURCE = (1 << 31) - 1

_BASELINE = 0xC0
_MAX_TAG_NAME_CHARS = 64

_REFUSALS: dict[type[Request], frozenset[str]] = {
    ProbeRequest: frozenset({"unsupported-image", "damaged-image", "too-many-pixels", "probe-failed"}),
    RenderRequest: frozenset(
        {"unsupported-image", "damaged-image", "too-many-pixels", "probe-failed", "rendition-too-large"}
    ),
    LocationRequest: frozenset({"unsupported-image"}),
}


def max_answer_bytes(request: Request, picture: PictureFile) -> int:
    """The most bytes that an answer to the request may have."""
    match request:
        case RenderRequest(transformation=transformation):
            pixels = MAX_PIXELS if _may_move(transformation) else math.prod(_max_size(transformation))
            return min(_MAX_FILE_BYTES, _MAX_HEADERS_BYTES + _BYTES_A_PIXEL * pixels)
        case LocationRequest():
            return MAX_WORDS_BYTES + picture.size + _PATCH_OVERHEAD_BYTES * min(picture.size, _MAX_PATCHES)
        case ProbeRequest():
            return MAX_WORDS_BYTES


def check(request: Request, picture: PictureFile, finding: Finding) -> None:
    """Raises OddAnswer if an honest child does not answer so."""
    match request, finding:
        case ProbeRequest(max_pixels=max_pixels), Probe():
            _check_probe(finding, picture, max_pixels)
        case RenderRequest(transformation=transformation), Rendered(data):
            _check_rendition(data, transformation)
        case LocationRequest(), Patches(patches):
            _check_patches(patches, picture.size)
        case _, Refusal(code, kind):
            _require(code in _REFUSALS[type(request)], "a refusal of another request")
            _require(kind is None or code == "unsupported-image", "the kind of a picture that is supported")
        case _, Unreadable():
            pass
        case _:
            raise OddAnswer(f"a {type(finding).__name__} for a {type(request).__name__}")


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise OddAnswer(reason)


def _check_probe(probe: Probe, picture: PictureFile, max_pixels: int) -> None:
    # A drawing may begin with more than a head of comments, and may be compressed.
    _require(probe.format in MIME_TYPES and probe.format == (picture.form or "svg"), "another format than the file's")
    _require(1 <= probe.pages <= MAX_PAGES, "a number of pages")
    sides = (probe.width, probe.height)
    _require(min(sides) >= 1 and max(sides) <= _MAX_SIDE_OF_SOURCE, "a side")
    _require(probe.width * probe.height * probe.pages <= max_pixels, "more pixels than are admitted")
    _require(1 <= probe.orientation <= 8, "an orientation")
    _require(_is_of_size(sorted(sides), probe.format, picture), "another size than the file's")
    _check_exif(probe.exif)
    _check_preview(probe.mini_preview)


def _is_of_size(sides: Sequence[int], form: str, picture: PictureFile) -> bool:
    if picture.header_size is None:
        return True
    header = sorted(picture.header_size)
    if form == "gif":  # its first frame may be larger than the screen
        return sides[0] >= header[0] and sides[1] >= header[1]
    return list(sides) == header


def _check_exif(exif: Mapping[str, object]) -> None:
    """Fit for JSON and for PostgreSQL: no NUL, nothing infinite. msgpack has let no lone surrogate through.

    All tags at once, since a loop over them takes longer than all other checks.
    """
    names = "".join(exif)
    lengths = {len(name) for name in exif}
    _require(not exif or (names.isascii() and names.isalnum() and min(lengths) > 0), "the name of a tag")
    _require(max(lengths, default=0) <= _MAX_TAG_NAME_CHARS, "a long name of a tag")
    texts = [value for value in exif.values() if type(value) is str]
    _require("\0" not in "".join(texts) and _max_len(texts) <= MAX_EXIF_TEXT_CHARS, "the text of a tag")
    lists = [value for value in exif.values() if type(value) is list]
    _require(_max_len(lists) <= MAX_EXIF_LIST_ITEMS, "a long list")
    numbers = [*chain(*lists), *(value for value in exif.values() if type(value) not in {str, list})]
    _require({*map(type, numbers)} <= {int, float} and all(map(math.isfinite, numbers)), "the value of a tag")
    _require(len(msgspec.json.encode(exif)) <= MAX_EXIF_BYTES, "too much EXIF")


def _max_len(values: Sequence[Sized]) -> int:
    return max(map(len, values), default=0)


def _check_preview(data: bytes) -> None:
    """A whole baseline JPEG, as far as its segments say."""
    _require(len(data) <= MAX_PREVIEW_BYTES, "a long preview")
    frame = jpeg_frame(_reader(data)) if data.startswith(b"\xff\xd8\xff") and data.endswith(b"\xff\xd9") else None
    _require(frame is not None and frame.marker == _BASELINE, "a preview that is no baseline JPEG")
    _require(frame is not None and min(frame[1:]) >= 1 and max(frame[1:]) <= MAX_PREVIEW_SIDE, "a large preview")


def _check_rendition(data: bytes, transformation: Transformation) -> None:
    head = data[:HEAD_BYTES]
    _require(sniff(head) == transformation.format, "a rendition of another format")
    size = avif_size(head) if transformation.format == "avif" else read_size(transformation.format, _reader(data))
    width, height = _max_size(transformation)
    _require(size is not None and 1 <= size[0] <= width and 1 <= size[1] <= height, "a rendition of another size")


def _max_size(transformation: Transformation) -> tuple[int, int]:
    """The most that a rendition may have; `percent` and a missing side depend on the picture."""
    return transformation.width or MAX_SIDE, transformation.height or MAX_SIDE


def _may_move(transformation: Transformation) -> bool:
    return transformation.format in {"gif", "webp"} and transformation.frame is None


def _check_patches(patches: Sequence[tuple[int, bytes]], size: int) -> None:
    """In the order of the file and within it, no one over another."""
    _require(len(patches) <= _MAX_PATCHES, "too many patches")
    end = 0
    for at, data in patches:
        _require(end <= at and at + len(data) <= size, "a patch outside of its place")
        end = at + len(data)


def _reader(data: bytes) -> Read:
    return partial(_slice, data)


def _slice(data: bytes, size: int, at: int) -> bytes:
    return data[at : at + size]
