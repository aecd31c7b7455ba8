"""What a probe finds in an image, and how it refuses one: the words that the queue, the worker and the rows share."""

from __future__ import annotations

from dataclasses import dataclass

MIME_TYPES: dict[str, str] = {
    "jpeg": "image/jpeg",
    "png": "image/png",
    "webp": "image/webp",
    "gif": "image/gif",
    "avif": "image/avif",
    "tiff": "image/tiff",
    "heic": "image/heic",
    "svg": "image/svg+xml",
}

# As JSON text.
MAX_EXIF_BYTES = 16_384
MAX_EXIF_TEXT_CHARS = 1_000
MAX_EXIF_LIST_ITEMS = 64
MAX_PREVIEW_BYTES = 500
MAX_PREVIEW_SIDE = 48
# Frames of an animation, pages of a TIFF: each is decoded, and each has a cost of its own.
MAX_PAGES = 10_000


@dataclass(frozen=True, slots=True)
class Probe:
    """Findings about one picture.

    `width` and `height` are as displayed, and of one page. `orientation` is what was applied to the stored pixels, as a
    value of EXIF, 1 to 8: of EXIF or, for HEIC and AVIF, of the container's own rotation and mirroring. `exif` has
    standard tag names and JSON types; its `Orientation` is the file's own value. `mini_preview` is a baseline JPEG.
    """

    format: str
    width: int
    height: int
    orientation: int
    pages: int
    has_alpha: bool
    exif: dict[str, object]
    mini_preview: bytes


class Rejected(Exception):
    """The picture is refused for good. `code` is an error code of the API (`service.errors`).

    `kind` names what a picture is that the decoders do not support, in a few words for the client: "12-bit JPEG".
    """

    def __init__(self, code: str, kind: str | None = None) -> None:
        super().__init__(code if kind is None else f"{code}: {kind}")
        self.code = code
        self.kind = kind
