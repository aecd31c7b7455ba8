"""Checks of a decoder's results: a lie ends the process, and counts against its picture."""

from __future__ import annotations

import io
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from structlog.testing import capture_logs

from service.images.probe import MAX_PREVIEW_BYTES, Probe
from service.renditions.transformation import Transformation
from tests.integration.sandbox.conftest import NewPool
from tests.support import pictures
from tests.support.decoders import probe_group
from tests.support.lying_decoder import TOKEN, TOKENS
from tests.support.samples import jpeg
from worker.file_headers import read_size
from worker.sandbox.decoder import DecoderFailed
from worker.sandbox.messages import (
    GREETING_TOKEN,
    LENGTH,
    MAX_METADATA_BYTES,
    Patches,
    ReadError,
    Rejection,
    Rendered,
    Response,
    Result,
    encode_response,
)
from worker.sandbox.pool import DecoderPool
from worker.sandbox.process import DecoderStalled

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="decoders get their files over Unix sockets"),
]

PREVIEW = pictures.encode("JPEG", Image.new("L", (48, 32)), quality=10)
HONEST = Probe("jpeg", 120, 80, 1, 1, has_alpha=False, exif={"Make": "Daguerre"}, mini_preview=PREVIEW)
MAX_PIXELS = 1_000_000
SMALL = Transformation("jpeg", 80, width=60, height=60)


def encode(result: Result, *, seconds: float = 0) -> bytes:
    return encode_response(Response.of(result, seconds=seconds, cpu_s=0))


class Liar:
    """A pool of one decoder that responds with what a test has set. Before that it does not respond."""

    def __init__(self, folder: Path, pool: DecoderPool) -> None:
        self.picture = folder / "picture"
        self.picture.write_bytes(jpeg(120, 80))
        self.pool = pool
        self._lie = folder / "lie"

    def say(self, result: Result, *, seconds: float = 0) -> None:
        self.say_bytes(encode(result, seconds=seconds))

    def say_bytes(self, message: bytes) -> None:
        self._lie.write_bytes(message)

    def say_to_groups(self, message: bytes) -> None:
        """Sets the response to all requests of a group, with TOKENS."""
        self._lie.with_suffix(".group").write_bytes(message)

    async def probe(self) -> Probe:
        return await self.pool.probe(str(self.picture))

    async def probe_group(self) -> list[Result | BaseException]:
        return await probe_group(self.pool, str(self.picture), str(self.picture))

    async def render(self, transformation: Transformation = SMALL) -> bytes:
        return await self.pool.render([str(self.picture)], transformation)

    async def find_locations(self) -> Any:
        return await self.pool.find_locations([str(self.picture)])

    @property
    def pid(self) -> int | None:
        return self.pool.decoders[0].process.pid


@pytest.fixture
async def liar(new_pool: NewPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Liar:
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tests.support.lying_decoder "{tmp_path / "lie"}"\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    pool = new_pool(max_pixels=MAX_PIXELS, timeout_s=0.5)
    await pool.start()
    return Liar(tmp_path, pool)


def image(form: str, width: int, height: int, **options: object) -> bytes:
    return pictures.encode(form, Image.new("RGB", (width, height)), **options)


LIES: dict[str, dict[str, Any]] = {
    "another format": {"format": "png"},
    "a format that runs scripts": {"format": "svg"},
    "an unknown format": {"format": "text/html"},
    "no width": {"width": 0},
    "a negative height": {"height": -80},
    "another width than the header's": {"width": 121},
    "more pages than admitted": {"pages": 105},
    "no pages": {"pages": 0},
    "too many pages": {"width": 1, "height": 1, "pages": 10_001},
    "no orientation": {"orientation": 0},
    "an orientation of no turn": {"orientation": 9},
    "EXIF with NUL": {"exif": {"Make": "a\0b"}},
    "EXIF over its bound": {"exif": {f"Tag{i}": "x" * 1_000 for i in range(17)}},
    "EXIF of a long text": {"exif": {"Make": "x" * 1_001}},
    "EXIF of a long list": {"exif": {"Make": [0] * 65}},
    "EXIF that is infinite": {"exif": {"Make": math.inf}},
    "EXIF that is no number": {"exif": {"Make": [1, math.nan]}},
    "EXIF of bytes": {"exif": {"Make": b"a"}},
    "EXIF of nothing": {"exif": {"Make": None}},
    "EXIF in EXIF": {"exif": {"Make": {"Make": "a"}}},
    "EXIF of a list of texts": {"exif": {"Make": ["a"]}},
    "EXIF of another name": {"exif": {"<script>": "a"}},
    "no preview": {"mini_preview": b""},
    "a long preview": {"mini_preview": PREVIEW[:-2] + bytes(MAX_PREVIEW_BYTES - len(PREVIEW) + 1) + b"\xff\xd9"},
    "a cut preview": {"mini_preview": PREVIEW[:-2]},
    "a preview that is a PNG": {"mini_preview": image("PNG", 4, 4)},
    "a progressive preview": {"mini_preview": pictures.encode("JPEG", Image.new("L", (8, 8)), progressive=True)},
    "a large preview": {"mini_preview": pictures.encode("JPEG", Image.new("L", (49, 8)), quality=10)},
    "a preview that is a page": {"mini_preview": b"\xff\xd8\xff<script></script>\xff\xd9"},
}


async def test_honest_result_is_accepted(liar: Liar) -> None:
    liar.say(HONEST)
    assert await liar.probe() == HONEST
    turned = replace(HONEST, width=80, height=120, orientation=6)
    liar.say(turned)
    assert await liar.probe() == turned


@pytest.mark.parametrize("changes", LIES.values(), ids=LIES.keys())
async def test_probe_that_cannot_be_ends_its_child(liar: Liar, changes: dict[str, Any]) -> None:
    liar.say(replace(HONEST, **changes))
    pid = liar.pid
    with capture_logs() as logs, pytest.raises(DecoderFailed):
        await liar.probe()
    assert [line["cause"].partition(":")[0] for line in logs if line["event"] == "decoder.failed"] == [
        "InvalidResponse"
    ]
    liar.say(HONEST)
    assert await liar.probe() == HONEST
    assert liar.pid != pid


async def test_drawing_has_no_more_pixels_than_admitted(liar: Liar) -> None:
    """Its header does not say its size."""
    liar.picture.write_bytes(pictures.SVG)
    liar.say(replace(HONEST, format="svg", width=1_000, height=1_001))
    with pytest.raises(DecoderFailed):
        await liar.probe()


@pytest.mark.parametrize("text", [b"\xed\xa0\x80", b"\xff"], ids=["a lone surrogate", "no UTF-8"])
async def test_text_that_is_no_text_ends_its_child(liar: Liar, text: bytes) -> None:
    honest = encode_response(Response.of(replace(HONEST, exif={"Make": "x" * len(text)}), seconds=0, cpu_s=0))
    liar.say_bytes(honest.replace(b"x" * len(text), text))
    with pytest.raises(DecoderFailed):
        await liar.probe()


@pytest.mark.parametrize(
    "refusal",
    [
        Rejection("quota-exceeded"),
        Rejection("nonsense"),
        Rejection("rendition-too-large"),
        Rejection("damaged-image", "JPEG XL"),
        Rejection("unsupported-image", "x" * 65),
        Rejection("unsupported-image", "\x1b[2J"),
    ],
    ids=repr,
)
async def test_refusal_of_another_kind_ends_its_child(liar: Liar, refusal: Rejection) -> None:
    liar.say(refusal)
    with pytest.raises(DecoderFailed):
        await liar.probe()


@pytest.mark.parametrize("finding", [Rendered(b"\xff\xd8\xff"), Patches([]), ReadError("x" * 201)], ids=repr)
async def test_answer_to_another_request_ends_its_child(liar: Liar, finding: Result) -> None:
    liar.say(finding)
    with pytest.raises(DecoderFailed):
        await liar.probe()


async def test_long_response_is_not_awaited(liar: Liar) -> None:
    """Only its length is sent. A worker that waited for the rest would time out, and blame the disk."""
    liar.say_bytes(LENGTH.pack(MAX_METADATA_BYTES + 1))
    with pytest.raises(DecoderFailed):
        await liar.probe()
    liar.say_bytes(LENGTH.pack(6 * 60 * 60 + (1 << 20) + 1))
    with pytest.raises(DecoderFailed):
        await liar.render()
    liar.say_bytes(LENGTH.pack(MAX_METADATA_BYTES + 17 * liar.picture.stat().st_size + 1))
    with pytest.raises(DecoderFailed):
        await liar.find_locations()


@pytest.mark.parametrize(
    ("data", "transformation"),
    [
        (b"", SMALL),
        (b"<html>", SMALL),
        (image("PNG", 60, 40), SMALL),
        (image("JPEG", 61, 40), SMALL),
        (image("PNG", 40, 61), Transformation("png", 80, width=60, height=60)),
        (image("PNG", 8_193, 1), Transformation("png", 80)),
        (image("WEBP", 61, 40), Transformation("webp", 80, width=60)),
        (image("GIF", 40, 61), Transformation("gif", 80, height=60)),
        (image("AVIF", 61, 40, speed=10), Transformation("avif", 80, width=60, height=60)),
        (pictures.HEIC, Transformation("avif", 80)),
    ],
)
async def test_other_rendition_ends_decoder(liar: Liar, data: bytes, transformation: Transformation) -> None:
    liar.say(Rendered(data))
    with pytest.raises(DecoderFailed):
        await liar.render(transformation)


@pytest.mark.parametrize("form", ["jpeg", "png", "webp", "gif", "avif"])
async def test_ordered_rendition_is_accepted(liar: Liar, form: Any) -> None:
    data = image(form.upper(), 60, 40)
    liar.say(Rendered(data))
    assert await liar.render(Transformation(form, 80, width=60, height=60)) == data


async def test_patches_stay_within_their_file(liar: Liar) -> None:
    size = liar.picture.stat().st_size
    honest = [(0, b"ab"), (2, b"c"), (size - 1, b"d")]
    liar.say(Patches(honest))
    assert await liar.find_locations() == honest
    for lie in ([(-1, b"a")], [(size, b"a")], [(0, b"ab"), (1, b"b")], [(5, b"a"), (1, b"b")], [(1 << 62, b"a")]):
        liar.say(Patches(lie))
        with pytest.raises(DecoderFailed):
            await liar.find_locations()


@pytest.mark.parametrize("token", [TOKEN, b"<stolen>", GREETING_TOKEN], ids=["twice", "early", "as a greeting"])
async def test_response_to_no_request_ends_decoder(liar: Liar, token: bytes) -> None:
    """Otherwise each picture would get the response of another one. No picture is blamed."""
    liar.say_bytes(encode(HONEST) + token + encode(HONEST))
    assert await liar.probe() == HONEST
    pid = liar.pid
    liar.say(HONEST)
    with capture_logs() as logs:
        assert [await liar.probe() for _ in range(3)] == [HONEST] * 3
    assert liar.pid != pid
    assert [(line["event"], line["cause"]) for line in logs] == [
        ("decoder.failed", "InvalidResponse: the token of another request")
    ]


FIRST, SECOND = TOKENS


@pytest.mark.parametrize(
    "lie",
    [
        SECOND + encode(HONEST) + FIRST + encode(HONEST),
        FIRST + encode(HONEST) + FIRST + encode(HONEST),
        FIRST + encode(Rendered(b"")),
        FIRST + LENGTH.pack(MAX_METADATA_BYTES + 1),
        FIRST + encode(HONEST) + b"<stolen>" + encode(HONEST),
        FIRST + encode(HONEST),
    ],
    ids=["out of order", "twice", "of another type", "too long", "for another request", "too few"],
)
async def test_group_with_an_invalid_response_is_split(liar: Liar, lie: bytes) -> None:
    """The decoder does not lie to a lone picture, so nobody is blamed."""
    liar.say(HONEST)
    liar.say_to_groups(lie)
    pid = liar.pid
    with capture_logs() as logs:
        assert await liar.probe_group() == [HONEST] * 2
    assert liar.pid != pid
    assert [line["event"] for line in logs] == ["decoder.group_failed"]


async def test_picture_with_an_invalid_response_is_blamed_alone(liar: Liar) -> None:
    liar.say(Rendered(b""))
    liar.say_to_groups(FIRST + encode(HONEST) + SECOND + encode(Rendered(b"")))
    with capture_logs() as logs:
        outcomes = await liar.probe_group()
    assert (outcomes[0], type(outcomes[1])) == (HONEST, DecoderFailed)
    assert [line["event"] for line in logs] == ["decoder.group_failed", "decoder.failed"]


async def test_too_many_responses_to_a_group_end_decoder(liar: Liar) -> None:
    liar.say(HONEST)
    liar.say_to_groups(b"".join(token + encode(HONEST) for token in (FIRST, SECOND, SECOND)))
    pid = liar.pid
    assert await liar.probe_group() == [HONEST] * 2
    assert await liar.probe() == HONEST
    assert liar.pid != pid


async def test_two_results_end_decoder(liar: Liar) -> None:
    both = Response(0, 0, probe=HONEST, rejection=Rejection("damaged-image"))
    liar.say_bytes(encode_response(both))
    with pytest.raises(DecoderFailed):
        await liar.probe()


async def test_duration_is_at_most_the_time_limit(liar: Liar) -> None:
    """The worker chooses by it how many requests a decoder prefetches."""
    liar.say(HONEST, seconds=1e9)
    await liar.probe()
    assert liar.pool.prefetch == 1
    for _ in range(30):
        liar.pool.record_duration(0)
    assert liar.pool.prefetch > 1


async def test_stalled_decoder_is_no_slow_disk(liar: Liar) -> None:
    with pytest.raises(DecoderStalled):  # the worker can read the file
        await liar.probe()
    liar.say(ReadError("OSError(5, 'Input/output error')"))
    with pytest.raises(DecoderStalled):
        await liar.probe()
    liar.picture.unlink()
    with pytest.raises(FileNotFoundError):
        await liar.probe()


@pytest.mark.parametrize("name", pictures.every_format())
async def test_every_format_passes_the_checks(new_pool: NewPool, tmp_path: Path, name: str) -> None:
    path = tmp_path / "picture"
    path.write_bytes(pictures.every_format()[name])
    pool = new_pool(max_pixels=MAX_PIXELS, timeout_s=8)
    probe = await pool.probe(str(path))
    assert probe.format == name.partition(",")[0]
    await pool.find_locations([str(path)])
    for form in ("jpeg", "png", "webp", "gif", "avif"):
        with Image.open(io.BytesIO(await pool.render([str(path)], Transformation(form, 80, width=20)))) as made:
            assert made.width == 20


# A frame of 16 x 8 as a JPEG has it, and bytes before it.
FRAME = b"\xff\xc0\x00\x11\x08\x00\x08\x00\x10"


@pytest.mark.parametrize(
    ("between", "size"),
    [
        (b"", (16, 8)),
        (b"\xff\xe1\x00\x04ab", (16, 8)),
        (b"\xff\xff\xff", (16, 8)),
        (b"\xff\xe1\x13\x88" + FRAME.ljust(4_998), (16, 8)),
        (b"\x00", None),
        (b"\xff\x00\x00\x02", None),
        (b"\xff\xe1\x00\x00", None),
        (b"\xff\xd9", None),
        (b"\xff\xe1\x00\x02" * 100, None),
    ],
)
def test_jpeg_size_is_that_of_its_first_frame(between: bytes, size: tuple[int, int] | None) -> None:
    data = b"\xff\xd8" + between + FRAME
    assert read_size("jpeg", lambda size, at: data[at : at + size]) == size


@pytest.mark.parametrize("form", ["png", "gif", "webp", "jpeg"])
def test_header_that_is_cut_has_no_size(form: str) -> None:
    data = pictures.encode(form.upper())
    assert read_size(form, lambda size, at: data[at : at + size]) == (pictures.WIDTH, pictures.HEIGHT)
    assert read_size(form, lambda size, at: data[:9][at : at + size]) is None
