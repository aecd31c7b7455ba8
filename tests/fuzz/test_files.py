"""Probes mutated pictures in decoder processes. Each is accepted or refused, within limits of time and memory.

Every accepted picture is rendered in many ways. `./run test --fuzz-inputs 100000 tests/fuzz` tests more pictures, and
`--fuzz-seed` other ones.
"""

from __future__ import annotations

import io
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from service.config.settings import Settings
from service.errors import CATALOGUE
from service.images.probe import MAX_EXIF_BYTES, Probe, Rejected
from service.media_types import MIME_TYPES
from service.renditions.transformation import Transformation
from tests.conftest import Fuzzing
from tests.fuzz.mutations import mutate, repair_png_checksums
from tests.fuzz.seeds import seeds_of
from tests.support.processes import peak_kb
from worker.sandbox.decoder import DecoderFailed
from worker.sandbox.pool import DecoderPool

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads /proc")]

_DEFAULTS = Settings.model_construct()
_MAX_S = 10
_MAX_KB = 2 << 20  # half of the 4 GB at which allocations of a decoder fail
_MIN_INPUTS_PER_S = 10  # for the slowest format, on a busy machine


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "form" in metafunc.fixturenames:
        seconds = 60 + metafunc.config.getoption("--fuzz-inputs") // len(MIME_TYPES) // _MIN_INPUTS_PER_S
        metafunc.parametrize("form", [pytest.param(form, marks=pytest.mark.timeout(seconds)) for form in MIME_TYPES])


@dataclass
class Tally:
    outcomes: Counter[str] = field(default_factory=Counter)
    decoder_failures: list[int] = field(default_factory=list)
    slowest_s: float = 0
    slowest: int = -1
    peak_kb: int = 0

    def __str__(self) -> str:
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in self.outcomes.most_common())
        return (
            f"{self.outcomes.total()} inputs: {outcomes}; "
            f"{len(self.decoder_failures)} decoder failures {self.decoder_failures}; "
            f"slowest {self.slowest_s:.2f} s ({self.slowest}); peak {self.peak_kb / 1024:.0f} MB"
        )


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[DecoderPool]:
    pool = DecoderPool(1, max_pixels=_DEFAULTS.max_pixels, timeout_s=_DEFAULTS.probe_timeout_s)
    await pool.start()
    yield pool
    await pool.close()


def test_mutations_are_repeatable() -> None:
    for form in MIME_TYPES:
        files = [mutate(form, seeds_of(form), number, 1) for number in range(50)]
        assert files == [mutate(form, seeds_of(form), number, 1) for number in range(50)]
        assert len(set(files)) > 40
        assert files[0] != mutate(form, seeds_of(form), 0, 2)


def test_png_mutations_have_valid_checksums() -> None:
    data = bytearray(seeds_of("png")[0])
    original = bytes(data)
    data[20] ^= 1
    repair_png_checksums(data)
    assert data[:29] != original[:29]
    assert data[29:33] != original[29:33]
    data[20] ^= 1
    repair_png_checksums(data)
    assert data == original


async def test_mutated_picture_is_rendered_or_refused(
    pool: DecoderPool, form: str, fuzzing: Fuzzing, tmp_path: Path
) -> None:
    tally = Tally()
    path = tmp_path / "picture"
    for number in range(fuzzing.inputs // len(MIME_TYPES)):
        data = mutate(form, seeds_of(form), number, fuzzing.seed)
        path.write_bytes(data)
        started = time.monotonic()
        try:
            check(await pool.probe(str(path)))
            await render_all(pool, path, number)
            tally.outcomes["accepted"] += 1
        except Rejected as error:
            tally.outcomes[error.code] += 1
        except DecoderFailed:
            tally.outcomes["decoder-failed"] += 1
            tally.decoder_failures.append(number)
            fuzzing.save(form, number, data)
        except BaseException:
            fuzzing.save(form, number, data)
            raise
        elapsed_s = time.monotonic() - started
        if elapsed_s > tally.slowest_s:
            tally.slowest_s, tally.slowest = elapsed_s, number
        tally.peak_kb = max(tally.peak_kb, peak_kb(pool.decoders[0].process.pid))
    fuzzing.report(form, str(tally))
    assert set(tally.outcomes) - {"accepted", "decoder-failed"} <= set(CATALOGUE)
    assert not tally.decoder_failures
    assert tally.slowest_s < _MAX_S
    assert tally.peak_kb < _MAX_KB


async def render_all(pool: DecoderPool, path: Path, number: int) -> None:
    """Asserts that every rendition of an accepted picture succeeds or is too large."""
    for transformation in (*_RENDITIONS, random_transformation(number)):
        try:
            rendered = await pool.render([str(path)], transformation)
        except Rejected as error:
            assert error.code == "rendition-too-large", transformation  # noqa: PT017 - any other code is a bug
            continue
        Image.open(io.BytesIO(rendered)).load()


# They decode the whole picture, a small copy, one frame, and all frames.
_RENDITIONS = (
    Transformation(format="png", quality=80),
    Transformation(format="jpeg", quality=80, width=20),
    Transformation(format="jpeg", quality=80, width=16, height=16, fit="cover", gravity="smart"),
    Transformation(format="png", quality=80, trim=10.0),
    Transformation(format="jpeg", quality=80, frame=2),
    Transformation(format="webp", quality=10),
)


def random_transformation(number: int) -> Transformation:
    """Returns a transformation that depends on the number. AVIF is left out, because it is slow."""
    rng = random.Random(number)
    return Transformation(
        format=rng.choice(("jpeg", "png", "webp", "gif")),
        quality=rng.randint(1, 100),
        width=rng.choice((None, 1, 7, 20, 300)),
        height=rng.choice((None, 1, 5, 33)),
        fit=rng.choice(("contain", "cover", "scale-down", "fill", "pad")),
        gravity=rng.choice(("centre", "southwest", "smart", (0.1, 0.9))),
        crop=rng.choice((None, None, (9, 40))),
        enlarge=rng.random() < 0.5,
        trim=rng.choice((None, None, 10.0)),
        rotate=rng.choice((0, 90)),
        grayscale=rng.random() < 0.2,
        blur=rng.choice((0.0, 0.0, 3.0)),
        ellipse=rng.random() < 0.2,
        frame=rng.choice((None, None, 1, 2)),
        metadata=rng.choice(("none", "copyright", "keep")),
        keep_location=rng.random() < 0.5,
    )


def check(result: Probe) -> None:
    """Asserts the invariants of every probe."""
    assert result.format in MIME_TYPES
    assert 0 < result.width * result.height * result.pages <= _DEFAULTS.max_pixels
    assert 1 <= result.orientation <= 8
    text = json.dumps(result.exif, allow_nan=False, ensure_ascii=False)
    assert "\\u0000" not in text
    assert len(text.encode()) <= 4 * MAX_EXIF_BYTES
    assert len(result.mini_preview) <= 500
    Image.open(io.BytesIO(result.mini_preview)).load()
