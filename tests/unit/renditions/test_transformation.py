"""The form in which transformations are stored and queued, which older and newer versions share."""

from __future__ import annotations

import msgspec
import pytest

from service.ids import ImageId
from service.renditions.jobs import RenderOrder, decode_order, encode_order
from service.renditions.transformation import Transformation, Watermark, digest

# Digests of renditions on disks: if they change, all renditions are made again. A new field of RenditionParams changes
# them once, by intention: then it goes to the end of FIELDS, and the new digests and bytes go here.
DIGESTS = {
    "d8a527949937159537c4560d05200b75": Transformation("jpeg", 80),
    "f49269cdbe69359a7511eac5caa0a6ab": Transformation("avif", 52, width=300),
    "d75b6907a8f336f359895382b1b00882": Transformation(
        "webp", 78, width=300, height=200, fit="cover", gravity="smart", enlarge=True
    ),
    "325114ff0ce8dae899f09c27e69f1c0a": Transformation(
        "png", 100, percent=12.5, crop=(10, 20), gravity=(0.25, 1.0), rotate=270, flip=True, flop=True
    ),
    "48f0c6e23b0a25d394b076148ad7bc96": Transformation(
        "gif", 100, background=(255, 204, 0, 128), trim=10.0, grayscale=True, frame=3, ellipse=True
    ),
    "6abb15b304703ebb3eac2c35a3eba0a8": Transformation(
        "jpeg", 7, brightness=1.5, contrast=0.5, saturation=2.0, blur=4.0, sharpen=1.5, metadata="keep",
        keep_location=True,
    ),
    "5603f47b2d8d655884764d83d0e2cb6b": Transformation(
        "webp", 78, watermark=Watermark(ImageId("AAAAAAA"), position="north", opacity=0.5, width=0.6)
    ),
}  # fmt: skip
FIELDS = [
    "format", "quality", "width", "height", "percent", "crop", "fit", "gravity", "enlarge", "background", "trim",
    "rotate", "flip", "flop", "grayscale", "brightness", "contrast", "saturation", "blur", "sharpen", "ellipse",
    "watermark", "frame", "metadata", "keep_location",
]  # fmt: skip
ORDER = (
    b"\x86\xa8image_id\xa7AAAAAAA\xa6digest\xd9 f49269cdbe69359a7511eac5caa0a6ab\xaetransformation\xde\x00\x19"
    b"\xa6format\xa4avif\xa7quality4\xa5width\xcd\x01,\xa6height\xc0\xa7percent\xc0\xa4crop\xc0\xa3fit\xa7contain"
    b"\xa7gravity\xa6centre\xa7enlarge\xc2\xaabackground\xc0\xa4trim\xc0\xa6rotate\x00\xa4flip\xc2\xa4flop\xc2"
    b"\xa9grayscale\xc2\xaabrightness\xcb?\xf0\x00\x00\x00\x00\x00\x00\xa8contrast\xcb?\xf0\x00\x00\x00\x00\x00\x00"
    b"\xaasaturation\xcb?\xf0\x00\x00\x00\x00\x00\x00\xa4blur\xcb\x00\x00\x00\x00\x00\x00\x00\x00"
    b"\xa7sharpen\xcb\x00\x00\x00\x00\x00\x00\x00\x00\xa7ellipse\xc2\xa9watermark\xc0\xa5frame\xc0"
    b"\xa8metadata\xa4none\xadkeep_location\xc2\xaaordered_by\xa0\xa4size\x00\xaewatermark_size\x00"
)


@pytest.mark.parametrize("expected", DIGESTS)
def test_digest_never_changes(expected: str) -> None:
    assert digest(DIGESTS[expected]) == expected


def test_fields_are_encoded_in_their_order() -> None:
    encoded = msgspec.msgpack.encode(Transformation("jpeg", 80))
    assert list(msgspec.msgpack.decode(encoded)) == FIELDS


def test_queued_order_keeps_its_bytes() -> None:
    order = RenderOrder.rendition(ImageId("AAAAAAA"), Transformation("avif", 52, width=300))
    assert encode_order(order) == ORDER
    assert decode_order(ORDER) == order


def test_order_with_an_unknown_parameter_is_refused() -> None:
    order = msgspec.msgpack.decode(ORDER)
    order["transformation"]["sepia"] = True
    with pytest.raises(msgspec.ValidationError, match="sepia"):
        decode_order(msgspec.msgpack.encode(order))


def test_order_without_a_new_parameter_is_accepted() -> None:
    order = msgspec.msgpack.decode(ORDER)
    del order["transformation"]["keep_location"]
    assert decode_order(msgspec.msgpack.encode(order)) == decode_order(ORDER)
