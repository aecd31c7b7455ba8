"""Hostile files in real child processes: each is probed or refused, in bounded time and memory."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from service.config.settings import Settings
from service.media_types import MIME_TYPES
from tests.conftest import Client, Tenant
from tests.support import hostile_pictures as hostile
from tests.support import pictures
from tests.support.decoders import DEFAULTS, Child
from tests.support.processes import peak_kb
from tests.support.samples import stored_files
from worker.sandbox.decoder import DecoderFailed
from worker.sandbox.pool import DecoderPool

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads /proc")]
_MOST_KB = 256 << 10
SAMPLES = pictures.every_format()


# Bombs


OUTCOMES = {
    "accepted": {
        "APNG of 2^31 frames",
        "GIF of 10,000 frames of 100 x 100",
        "HEIC grid of 961 cells",
        "JPEG of 100,000 restart markers",
        "JPEG of 255 segments of a profile",
        "JPEG of 50,000 APP1",
        "JPEG of 500 XMP of 64 KB",
        "PNG of 10,000 x 10,000",
        "PNG with 50 MB of iCCP",
        "PNG with 50 MB of zTXt",
        "SVG 200 deep, half transparent",
        "SVG of 50,000 elements",
        "SVG of a huge blur",
        "SVG of a million by 1",
        "SVG of a huge filter region",
        "SVG of a huge text",
        "SVG of a pattern of tiny tiles",
        "SVG of huge turbulence",
        "SVG of tiny dashes",
        "SVG that uses itself twice",
        "SVG that uses itself",
        "SVG with a huge view box",  # it is 150 pixels wide
        "TIFF of 5,000 pages",
        "TIFF whose page links to itself",
        "TIFF whose last page links to its second",
        "WebP of 100 frames of 1,000 squared",
        "WebP of 9,999 frames",
    },
    "too-many-pixels": {
        "APNG of 100 frames of 10,000 x 10,000",
        "APNG of 20,000 frames",
        "AVIF of 100,000 x 100,000",
        "GIF of 100,000 frames",
        "GIF of 65,535 x 65,535",
        "JPEG of 65,500 x 65,500",
        "PNG of 2^31 - 1 squared",
        "PNG of 50,000 x 50,000",
        "SVG of 1e38 x 1e-38",
        "SVG of 1e9 x 1e9",
        "TIFF of 50,000 pages",
        "TIFF of 50,000 x 50,000",
        "TIFF of 16,646,153 x 5",
        "WebP of 16,383 squared",
        "WebP of 50,000 frames",
    },
    "probe-failed": {"JPEG of 10,000 scans"},
}


@pytest.mark.parametrize("form", sorted({name.split()[0] for name in hostile.BOMBS}))
async def test_bomb_is_refused_by_header_or_is_cheap(child: Child, form: str) -> None:
    expected = {name: code for code, names in OUTCOMES.items() for name in names}
    assert set(expected) <= set(hostile.BOMBS)
    for name, make in hostile.BOMBS.items():
        if name.startswith(f"{form} "):
            assert await child.outcome(make()) == expected.get(name, "damaged-image"), name
    assert peak_kb(child.pid) < _MOST_KB


@pytest.mark.parametrize("name", hostile.ENDLESS)
async def test_endless_picture_is_stopped(tmp_path: Path, name: str) -> None:
    path = tmp_path / "picture"
    path.write_bytes(hostile.ENDLESS[name]())
    pool = DecoderPool(1, max_pixels=DEFAULTS.max_pixels, timeout_s=0.5)
    await pool.start()
    began = time.monotonic()
    with pytest.raises(DecoderFailed):
        await pool.probe(str(path))
    assert time.monotonic() - began < 5
    await pool.close()


async def test_svg_side_beyond_libvips_is_refused(child: Child) -> None:
    for side in ("100000001", "3e8", "1e9", "2100000000"):
        for size in (f'width="{side}" height="1"', f'width="5" height="{side}"'):
            assert await child.outcome(hostile.svg("", size)) == "too-many-pixels", size
    for size in ('width="1" height="1"', 'width="1" height="900"'):
        found = await child.look(hostile.svg("<rect width='9' height='9'/>", size))
        assert found.width == 1, size


async def test_svg_picture_counts_towards_the_limit(child: Child) -> None:
    for name, data in hostile.svgs_with_too_large_pictures().items():
        began = time.monotonic()
        assert await child.outcome(data) == "too-many-pixels", name
        assert time.monotonic() - began < 3, name
    assert peak_kb(child.pid) < _MOST_KB


async def test_svg_with_a_photo_is_accepted(child: Child) -> None:
    for form in ("PNG", "JPEG"):
        photo = hostile.svg_with_image(hostile.data_uri(pictures.encode(form), f"image/{form.lower()}"))
        assert (await child.look(photo)).mini_preview != (await child.look(hostile.svg(""))).mini_preview, form
        nested = hostile.svg_with_image(hostile.data_uri(photo, "image/svg+xml"))
        assert await child.outcome(nested) == "accepted", form
    assert await child.outcome(hostile.svg_with_image("data:image/png;base64,!!!")) == "accepted"


async def test_decoder_message_with_any_bytes(child: Child) -> None:
    """libheif repeats the name of a property that it does not know."""
    turned = pictures.encode("AVIF", exif=pictures.exif_block([(0x0112, 3, 1, b"\6\0")]), speed=10)
    for _ in range(2):
        assert await child.outcome(turned.replace(b"irot", b"i\x80ot")) == "damaged-image"
    assert await child.outcome(turned) == "accepted"


async def test_heic_with_binary_item_type_is_damaged(child: Child) -> None:
    for kind in (b"\xffxif", b"Exi\x80", b"\xff\xff\xff\xff"):
        assert await child.outcome(hostile.heic_of_item_type(kind)) == "damaged-image"
    assert (await child.look(hostile.heic_of_item_type(b"Othe"))).exif == {}


async def test_bytes_after_a_progressive_jpeg_are_no_scan(child: Child) -> None:
    film = b"\xff\xda" * 1_000
    assert await child.outcome(pictures.encode("JPEG", progressive=True) + film) == "accepted"


# Truncated files


def _long_animation() -> bytes:
    frame = pictures.quarters(1_200, 900)
    return pictures.encode("WEBP", frame, save_all=True, append_images=[frame.rotate(n) for n in range(1, 16)])


@pytest.mark.parametrize("form", MIME_TYPES)
async def test_truncated_picture_is_refused(child: Child, form: str) -> None:
    samples = {name: data for name, data in SAMPLES.items() if name.startswith(form)}
    if form == "webp":
        samples["webp, more frames than are decoded"] = _long_animation()
    for name, data in samples.items():
        last = len(data) - (5 if form == "tiff" else 1)  # a TIFF may end with the offset of no next page
        if form == "gif":
            last -= 1  # the end mark may be missing
        for at in sorted({last, last - 1, *(last * step // 25 for step in range(1, 25))}):
            outcome = await child.outcome(data[:at])
            assert outcome in {"damaged-image", "unsupported-image"}, f"{name}, cut to {at} of {len(data)}"


@pytest.mark.usefixtures("worker")
async def test_truncated_upload_is_not_stored(api: Client, tenant: Tenant, settings: Settings) -> None:
    for name, data in SAMPLES.items():
        response = await api.post(
            "/v1/images", data=data[: len(data) * 2 // 3], headers=tenant.headers | {"Content-Type": "image/jpeg"}
        )
        answer = await response.json()
        assert (response.status, answer["error"]["code"]) == (415, "damaged-image"), name
    account = await (await api.get("/v1/account", headers=tenant.headers)).json()
    assert account["response"]["num_images"] == account["response"]["storage"]["used"] == 0
    assert stored_files(settings) == []
