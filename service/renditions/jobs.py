"""The job of a rendition: its order, its end, and what processes tell each other of renditions."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from service.ids import ImageId
from service.renditions.transformation import Transformation, digest

_WITHOUT_LOCATION = "0" * 32


class RenderOrder(msgspec.Struct, frozen=True):
    """What is to be made of an image: a rendition, or without a transformation the file itself without its location.

    `digest` names the result among those of its image. `ordered_by` is the channel of the process that ordered it.
    `size` and `watermark_size` are those of the stored files in bytes, 0 if they are not known.
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
    data: bytes
    modified_ns: int


class RenderResult(msgspec.Struct, frozen=True, tag="end"):
    """A rendition is there, or `error` is why it cannot be: an error code of the API. `file` is what was made, if it
    is small or could not be kept. `kind` names what is not supported, as in `Rejected`. `seconds` of a child were
    spent on it, as far as is known, by order of the process whose channel is `ordered_by`.
    """

    image_id: ImageId
    digest: str
    error: str | None = None
    file: InlineFile | None = None
    kind: str | None = None
    seconds: float | None = None
    ordered_by: str = ""


class Deleted(msgspec.Struct, frozen=True, tag="deleted"):
    """Images that are no more, and with them what was made of them."""

    image_ids: list[ImageId]


News: TypeAlias = RenderResult | Deleted

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(RenderOrder)


def encode_order(order: RenderOrder) -> bytes:
    return _encoder.encode(order)


def decode_order(data: bytes) -> RenderOrder:
    return _decoder.decode(data)
