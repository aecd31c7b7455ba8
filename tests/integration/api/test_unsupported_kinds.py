"""Kinds of files that no decoder supports: the error message names them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest
from PIL import Image

from service.errors import CATALOGUE, FORMATS
from service.images.probe import Rejected
from tests.conftest import Client, Tenant
from tests.support import hostile_pictures, pictures
from tests.support.samples import jpeg
from worker import imaging
from worker.sandbox.messages import Rejection, Response, decode_response, encode_response


@pytest.fixture(scope="module", autouse=True)
def _prepared() -> None:
    imaging.prepare()


def jpeg_of(marker: int, bits: int = 8) -> bytes:
    """Returns a JPEG with the header of another coding process."""
    data = bytearray(pictures.encode("JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 1], data[frame + 4] = marker, bits
    return bytes(data)


def ftyp(*brands: bytes) -> bytes:
    return struct.pack(">I", 12 + 4 * len(brands)) + b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])


def raw(*entries: pictures.Entry) -> bytes:
    """Returns a TIFF like a raw camera file: a small preview, then sensor data."""
    return hostile_pictures.tiff_of((262, 3, 1, struct.pack("<HH", 32803, 0)), *entries)


def encoded(form: str) -> bytes:
    return pictures.encode(form, Image.new("RGB", (8, 8)))


KINDS = {
    "12-bit JPEG": jpeg_of(0xC1, 12),
    "lossless JPEG": jpeg_of(0xC3),
    "hierarchical JPEG": jpeg_of(0xC5),
    "JPEG-LS": jpeg_of(0xF7),
    "JPEG 2000": encoded("JPEG2000"),
    "JPEG XL": b"\xff\x0a" + bytes(20),
    "PNG optimised for iOS (CgBI)": hostile_pictures.png((b"CgBI", bytes(4)), (b"IHDR", bytes(13))),
    "BMP": encoded("BMP"),
    "ICO": encoded("ICO"),
    "CUR": b"\0\0\2\0\1\0" + bytes(30),
    "TGA": encoded("TGA"),
    "PSD": b"8BPS" + bytes(30),
    "PDF": encoded("PDF"),
    "PNM": encoded("PPM"),
    "DDS": encoded("DDS"),
    "HTML page": b"\n<!DOCTYPE html><title>404</title>",
    "MP4 video": ftyp(b"isom", b"mp42"),
    "QuickTime video": ftyp(b"qt  "),
    "raw camera file (CR3)": ftyp(b"crx ", b"crx "),
    "HEIF with VVC": ftyp(b"vvic", b"mif1"),
    "HEIF with JPEG": ftyp(b"mif1", b"mif1") + b"infe....jpeg",
    "HEIC with JPEG": pictures.HEIC.replace(b"\0\0hvc1\0", b"\0\0jpeg\0"),
    "zstd-compressed TIFF": hostile_pictures.tiff_of(compression=50_000),
    "LZMA-compressed TIFF": hostile_pictures.tiff_of(compression=34_925),
    "JPEG 2000-compressed TIFF": hostile_pictures.tiff_of(compression=34_712),
    "scheme 7777-compressed TIFF": hostile_pictures.tiff_of(compression=7777),
    "raw camera file": raw(),
    "raw camera file (DNG)": raw((50_706, 1, 4, b"\1\4\0\0")),
    "raw camera file (CR2)": b"II*\0\x10\0\0\0CR\2\0" + bytes(4) + hostile_pictures.tiff_of()[8:] + bytes(8),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kind_without_decoder_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "picture"
    path.write_bytes(KINDS[kind])
    with pytest.raises(Rejected) as refusal:
        imaging.probe(str(path), max_pixels=10_000)
    assert (refusal.value.code, refusal.value.kind) == ("unsupported-image", kind)


def test_kind_of_truncated_container_is_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(pictures.HEIC[:10])
    with pytest.raises(Rejected, match="unsupported-image") as refusal:
        imaging.probe(str(path), max_pixels=10_000)
    assert refusal.value.kind is None


def test_png_without_header_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(hostile_pictures.png((b"gAMA", bytes(4)), (b"IDAT", bytes(20))))
    with pytest.raises(Rejected, match="damaged-image"):
        imaging.probe(str(path), max_pixels=10_000)


async def upload_error(api: Client, tenant: Tenant, data: bytes) -> tuple[int, dict[str, Any]]:
    headers = tenant.headers | {"Content-Type": "application/octet-stream"}
    response = await api.post("/v1/images", data=data, headers=headers)
    return response.status, (await response.json())["error"]


@pytest.mark.usefixtures("worker")
async def test_error_message_names_the_kind(api: Client, tenant: Tenant) -> None:
    for kind in ("12-bit JPEG", "zstd-compressed TIFF", "JPEG XL"):
        status, error = await upload_error(api, tenant, KINDS[kind])
        assert (status, error["code"]) == (415, "unsupported-image")
        assert error["message"] == f"{kind} is not supported; send {FORMATS}."
    _, error = await upload_error(api, tenant, jpeg()[:-2])
    assert error["message"] == CATALOGUE["damaged-image"][1]


async def test_kind_of_failed_image_is_stored(api: Client, tenant: Tenant, connection: Any) -> None:
    await connection.execute(
        "insert into images (id, account_id, size, sha256, state, error, error_kind, failed_at) "
        "values ('FAILEDIMAGE', $1, 1, sha256(''), 'failed', 'unsupported-image', 'JPEG XL', now())",
        tenant.id,
    )
    response = await api.get("/v1/images/FAILEDIMAGE", headers=tenant.headers)
    assert response.status == 415
    assert (await response.json())["error"]["message"] == f"JPEG XL is not supported; send {FORMATS}."


@pytest.mark.parametrize("kind", ["x" * 65, "", "two\nlines", "\x1b[31m", "é"])
def test_kind_of_a_hostile_child_is_not_believed(kind: str) -> None:
    """A child may have become its picture."""
    answer = Response.of(Rejection("unsupported-image"), seconds=0, cpu_s=0)
    assert decode_response(encode_response(answer)[4:]).result == Rejection("unsupported-image")
    hostile = msgspec.structs.replace(answer, rejection=Rejection("unsupported-image", kind))
    with pytest.raises(ConnectionError):
        decode_response(encode_response(hostile)[4:])
    for name in KINDS:
        known = Response.of(Rejection("unsupported-image", name), seconds=0, cpu_s=0)
        assert decode_response(encode_response(known)[4:]).result == Rejection("unsupported-image", name)
