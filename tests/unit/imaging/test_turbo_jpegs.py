from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import pyvips

from tests.support import pictures
from worker.imaging.formats import jpeg
from worker.imaging.formats.jpeg import JpegFile
from worker.imaging.formats.source import Source

OpenJpeg = Callable[[bytes], JpegFile]


@pytest.fixture
def open_jpeg(tmp_path: Path) -> Iterator[OpenJpeg]:
    with ExitStack() as stack:

        def run(data: bytes) -> JpegFile:
            path = tmp_path / "picture"
            path.write_bytes(data)
            fd = os.open(path, os.O_RDONLY)
            stack.callback(os.close, fd)
            return jpeg.read_jpeg(Source(fd, 100_000_000))

        yield run


def decode(file: JpegFile, shrink: int) -> pyvips.Image | None:
    pixels = file.decode_turbo(shrink)
    return None if pixels is None else pixels.to_image(None)


def pixels(image: pyvips.Image, width: int, height: int) -> bytes:
    return bytes(image.crop(0, 0, width, height).write_to_memory())


@pytest.mark.slow
@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_small_jpeg_has_the_pixels_of_libvips(open_jpeg: OpenJpeg, shrink: int, mode: str, subsampling: str) -> None:
    for progressive in (False, True):
        for width, height in ((8, 8), (17, 9), (99, 77), (400, 304)):
            picture = pictures.landscape(width, height).convert(mode)
            file = open_jpeg(pictures.encode("JPEG", picture, subsampling=subsampling, progressive=progressive))
            ours, theirs = decode(file, shrink), file.load(shrink)
            assert ours is not None
            assert (ours.width, ours.height) == (max(1, round(width / shrink)), max(1, round(height / shrink)))
            assert (ours.bands, ours.interpretation) == (theirs.bands, theirs.interpretation)
            whole = (theirs.width, theirs.height)  # libvips leaves out what is not a whole pixel
            assert pixels(ours, *whole) == pixels(theirs, *whole)


def test_small_jpeg_in_a_large_file(open_jpeg: OpenJpeg) -> None:
    data = pictures.encode("JPEG", pictures.landscape(64, 48))
    comments = b"".join(b"\xff\xfe" + (65_535).to_bytes(2, "big") + bytes(65_533) for _ in range(17))
    file = open_jpeg(data[:2] + comments + data[2:])
    assert file.data is None
    image = decode(file, 2)
    assert image is not None
    assert pixels(image, 32, 24) == pixels(file.load(2), 32, 24)


def test_profile_is_joined_from_its_segments(open_jpeg: OpenJpeg) -> None:
    profile = pictures.icc_profile(red=(0.1431, 0.0606, 0.7141), blue=(0.4361, 0.2225, 0.0139))
    whole = pictures.encode("JPEG")
    parts = [profile[100:], profile[:100]]
    segments = b"".join(
        b"\xff\xe2" + (len(part) + 16).to_bytes(2, "big") + b"ICC_PROFILE\0" + bytes([2 - number, 2]) + part
        for number, part in enumerate(parts)
    )
    file = open_jpeg(whole[:2] + segments + whole[2:])
    assert file.header.profile == profile == bytes(file.load(1).get("icc-profile-data"))


@pytest.mark.slow
def test_other_jpegs_are_left_to_libvips(open_jpeg: OpenJpeg) -> None:
    photo = pictures.landscape(64, 48)
    whole = pictures.encode("JPEG", photo)
    huffman = whole.index(b"\xff\xc4")
    for data in (
        pictures.encode("JPEG", photo.convert("CMYK")),
        whole[: len(whole) * 2 // 3],
        whole[:huffman] + b"\xff\xc4\0\3\0" + whole[huffman:],
        whole.replace(b"\xff\xdb", b"\xff\xfe"),  # no quantization tables
    ):
        assert open_jpeg(data).decode_turbo(1) is None
    assert open_jpeg(pictures.encode("JPEG", pictures.landscape(2500, 2000))).decode_turbo(1) is None  # large
