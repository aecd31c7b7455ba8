"""Messages about renditions: the order that a job carries, its result, and events for all processes."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from service.ids import ImageId
from service.renditions.transformation import Transformation, digest

_WITHOUT_LOCATION = "0" * 32


class RenderOrder(msgspec.Struct, frozen=True):
    """The order for one rendition of an image. Without a transformation, it is a copy of the original without its
    location.

    `digest` names the rendition among those of its image. `ordered_by` is the channel of the process that ordered it.
    `size` and `watermark_size` are the sizes of the stored files in bytes, or 0 if they are not known.
    """

    image_id: ImageId
    digest: str = _WITHOUT_LOCATION
    transformation: Transformation | None = None
    ordered_by: str = ""
    size: int = 0
    watermark_size: int = 0

    @classmethod
    def rendition(
        cls, image_id: ImageId, transformation: Transformation, *, size: int = 0, watermark_size: int = 0
    ) -> RenderOrder:
        return cls(image_id, digest(transformation), transformation, size=size, watermark_size=watermark_size)

    @property
    def watermark_id(self) -> ImageId | None:
        watermark = self.transformation and self.transformation.watermark
        return watermark.image_id if watermark else None


class InlineFile(msgspec.Struct, frozen=True):
    """The file of a rendition, sent along with its result."""

    data: bytes
    modified_ns: int


class RenderResult(msgspec.Struct, frozen=True, tag="end"):
    """The result of an order: the rendition is stored, or `error` is the reason, as an error code of the API.

    `file` is the rendition if it is small or could not be stored. `kind` names what is not supported, as in `Rejected`.
    `seconds` is the time that a decoder took, if it is known; `ordered_by` is the channel of the process that pays.
    """

    image_id: ImageId
    digest: str
    error: str | None = None
    file: InlineFile | None = None
    kind: str | None = None
    seconds: float | None = None
    ordered_by: str = ""


class ImagesDeleted(msgspec.Struct, frozen=True, tag="deleted"):
    """Images and their renditions were deleted."""

    image_ids: list[ImageId]


RenditionEvent: TypeAlias = RenderResult | ImagesDeleted

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(RenderOrder)


def encode_order(order: RenderOrder) -> bytes:
    return _encoder.encode(order)


def decode_order(data: bytes) -> RenderOrder:
    """Raises msgspec.MsgspecError, also for a parameter of a newer version: without it, another picture would be stored
    under the order's digest.
    """
    return _decoder.decode(data)
