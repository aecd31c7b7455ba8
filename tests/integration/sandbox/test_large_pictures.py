"""Pictures of as many pixels as are accepted, within a child's limits of memory and time, and without files."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from PIL import Image

from service.config.settings import Settings
from service.images.probe import Rejected
from service.renditions.transformation import Transformation
from tests.support import large_pictures
from worker.sandbox.pool import DecoderPool

pytestmark = pytest.mark.slow

_DEFAULTS = Settings.model_construct()
# All of the picture has to be in memory for it.
FROM_WHOLE = Transformation(
    "jpeg", 80, width=300, height=200, fit="cover", crop=(5_000, 5_000), gravity="smart", background=(0, 0, 0, 255)
)
# More pixels than half of the picture's, so that a decoder does not scale them down itself.
NEARLY_WHOLE = Transformation("jpeg", 80, width=4_000, height=4_000)
ANIMATED = Transformation("gif", 80, width=16)


@pytest.fixture
async def pool() -> AsyncIterator[DecoderPool]:
    pool = DecoderPool(1, max_pixels=_DEFAULTS.max_pixels, timeout_s=30)
    await pool.start()
    yield pool
    await pool.close()


async def render(pool: DecoderPool, path: str, transformation: Transformation) -> Image.Image:
    data = await pool.render([path], transformation)
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("name", large_pictures.LARGE)
async def test_large_picture_needs_no_file(pool: DecoderPool, tmp_path: Path, name: str) -> None:
    path = tmp_path / "picture"
    path.write_bytes(large_pictures.LARGE[name]())
    probe = await pool.probe(str(path))
    assert probe.width * probe.height * probe.pages * 3 > 100 << 20
    assert (await render(pool, str(path), FROM_WHOLE)).size == (300, 200)
    if probe.pages > 1:  # equal frames become one
        assert (await render(pool, str(path), ANIMATED)).size == (16, 16)


@pytest.mark.parametrize("name", ["webp", "png, interlaced"])
async def test_large_rendition_needs_no_file(pool: DecoderPool, tmp_path: Path, name: str) -> None:
    path = tmp_path / "picture"
    path.write_bytes(large_pictures.LARGE[name]())
    assert (await render(pool, str(path), NEARLY_WHOLE)).size == (4_000, 4_000)


async def test_lack_of_memory_is_not_called_damage(tmp_path: Path) -> None:
    """RLIMIT_AS of a child process is less than this picture has, which its operator allows."""
    path = tmp_path / "picture"
    path.write_bytes(large_pictures.webp_animation(16_383, 5))
    pool = DecoderPool(1, max_pixels=2_000_000_000, timeout_s=30)
    with pytest.raises(Rejected, match="probe-failed"):
        await pool.render([str(path)], ANIMATED)
    await pool.close()
