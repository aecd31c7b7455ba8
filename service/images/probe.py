"""The result of a probe with its limits, and the rejection of a picture. Worker, queue and database share them."""

from __future__ import annotations

from dataclasses import dataclass

# Limits of the result; the EXIF's size is that of its JSON text.
MAX_EXIF_BYTES = 16_384
MAX_EXIF_TEXT_CHARS = 1_000
MAX_EXIF_LIST_ITEMS = 64
MAX_PREVIEW_BYTES = 500
MAX_PREVIEW_SIDE = 48
# Frames of an animation or pages of a TIFF. Each is decoded, and each has a cost of its own.
MAX_PAGES = 10_000


@dataclass(frozen=True, slots=True)
class Probe:
    """The properties of one picture.

    `width` and `height` are those of one page as it is displayed. `orientation` is the rotation and mirroring that was
    applied to the stored pixels, as a value of EXIF, 1 to 8. It comes from EXIF or, for HEIC and AVIF, from the
    container. `exif` has standard tag names and JSON types; its `Orientation` is the file's own value. `mini_preview`
    is a baseline JPEG.
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
    """The picture is refused permanently. `code` is an error code of the API (`service.errors`).

    `kind` names a kind of picture that the decoders do not support, in a few words for the client: "12-bit JPEG".
    """

    def __init__(self, code: str, kind: str | None = None) -> None:
        super().__init__(code if kind is None else f"{code}: {kind}")
        self.code = code
        self.kind = kind
