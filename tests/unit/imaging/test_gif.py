"""GIFs as Chromium 156 shows them: the expected letters are the output of its ImageDecoder for these files."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from PIL import Image

from service.images.probe import Probe, Rejected
from tests.support.gifs import BLUE, COLOURS, GREEN, RED, YELLOW, frame, gif, letters, lzw
from worker.imaging.containers.gif import read_gif
from worker.imaging.formats.gif_canvas import Canvas

FILLED = " ".join(["gggggg"] * 4)


@pytest.fixture
def max_pixels() -> int:
    return 10_000_000


def composed(data: bytes) -> list[str]:
    """Returns each frame in letters, after a check that it is the same if it is opened alone."""
    canvas = Canvas(data, read_gif(data, max_frames=100))
    frames = [letters(image) for image in canvas.frames()]
    assert [letters(canvas.frame(number)) for number in range(len(frames))] == frames
    return frames


@pytest.mark.parametrize(
    ("screen", "first", "size"),
    [
        ((640, 480), (0, 0, 10, 5), (640, 480)),
        ((800, 600), (0, 0, 100, 50), (800, 600)),
        ((3000, 20), (0, 0, 3, 3), (3000, 20)),
        ((4, 3), (0, 0, 8, 6), (8, 6)),
        ((8, 6), (5, 4, 6, 5), (11, 9)),
        ((8, 6), (20, 20, 3, 3), (23, 23)),
        ((0, 0), (2, 1, 8, 6), (10, 7)),
        ((0, 6), (0, 0, 8, 4), (8, 6)),
    ],
)
def test_gif_size_includes_its_first_frame(
    probe: Callable[[bytes], Probe],
    render: Callable[..., Image.Image],
    screen: tuple[int, int],
    first: tuple[int, int, int, int],
    size: tuple[int, int],
) -> None:
    data = gif(screen, frame(*first), frame(0, 0, 2, 2))
    result = probe(data)
    assert (result.width, result.height) == size
    for form in ("png", "gif", "webp"):
        assert render(data, form).size == size


def test_gif_is_transparent_outside_its_frames(
    probe: Callable[[bytes], Probe], render: Callable[..., Image.Image]
) -> None:
    data = gif((6, 4), frame(1, 1, 3, 2))
    assert composed(data) == ["...... .ggg.. .ggg.. ......"]
    assert probe(data).has_alpha
    assert render(data).convert("RGBA").getpixel((0, 0)) == (0, 0, 0, 0)
    jpeg = render(gif((600, 400), frame(100, 100, 300, 200)), "jpeg").convert("RGB").getpixel((10, 10))
    assert jpeg == (255, 255, 255)


def test_gif_later_frames_are_clipped() -> None:
    data = gif((6, 4), frame(0, 0, 6, 4), frame(4, 3, 5, 5, BLUE), frame(50, 40, 6, 5, BLUE), frame(0, 0, 2, 1, YELLOW))
    assert composed(data) == [
        FILLED,
        "gggggg gggggg gggggg ggggbb",
        "gggggg gggggg gggggg ggggbb",
        "yygggg gggggg gggggg ggggbb",
    ]


@pytest.mark.parametrize(
    ("disposal", "second", "third"),
    [
        (0, "gggggg gbbbgg gbbbgg gggggg", "gggggg gbbbgg gbyyyg gggggg"),
        (1, "gggggg gbbbgg gbbbgg gggggg", "gggggg gbbbgg gbyyyg gggggg"),
        (2, "...... .bbb.. .bbb.. ......", "...... ...... ..yyy. ......"),
        (3, "...... .bbb.. .bbb.. ......", "...... ...... ..yyy. ......"),
        (4, "...... .bbb.. .bbb.. ......", "...... ...... ..yyy. ......"),
        (7, "gggggg gbbbgg gbbbgg gggggg", "gggggg gbbbgg gbyyyg gggggg"),
    ],
)
def test_gif_disposal_of_every_frame(probe: Callable[[bytes], Probe], disposal: int, second: str, third: str) -> None:
    data = gif(
        (6, 4),
        frame(0, 0, 6, 4, disposal=disposal),
        frame(1, 1, 3, 2, BLUE, disposal=disposal),
        frame(2, 2, 3, 1, YELLOW, disposal=disposal),
    )
    assert composed(data) == [FILLED, second, third]
    assert probe(data).has_alpha is (disposal in {2, 3, 4})


@pytest.mark.parametrize(
    ("disposal", "third"), [(2, "g...gg g.yygg g...gg gggggg"), (3, "gggggg ggyygg gggggg gggggg")]
)
def test_gif_disposal_of_a_partial_frame(disposal: int, third: str) -> None:
    data = gif(
        (6, 4),
        frame(0, 0, 6, 4, disposal=1),
        frame(1, 0, 3, 3, BLUE, disposal=disposal),
        frame(2, 1, 2, 1, YELLOW),
    )
    assert composed(data) == [FILLED, "gbbbgg gbbbgg gbbbgg gggggg", third]


def test_gif_transparent_index_may_change(probe: Callable[[bytes], Probe]) -> None:
    stripes = [at % 3 for at in range(24)]
    data = gif((6, 4), frame(0, 0, 6, 4, YELLOW), frame(0, 0, 6, 4, stripes, transparent=BLUE))
    assert composed(data)[1] == " ".join(["rgyrgy"] * 4)
    assert not probe(data).has_alpha
    data = gif((6, 4), frame(0, 0, 6, 4, stripes, transparent=RED), frame(0, 0, 6, 4, stripes, transparent=GREEN))
    assert composed(data) == [" ".join([".gb.gb"] * 4), " ".join(["rgbrgb"] * 4)]
    assert probe(data).has_alpha


def test_gif_without_a_palette_is_black() -> None:
    rows = [at % 4 for at in range(24)]
    assert composed(gif((6, 4), frame(0, 0, 6, 4, rows), palette=())) == [" ".join(["KKKKKK"] * 4)]
    local = frame(0, 0, 6, 4, rows, palette=[COLOURS["r"], COLOURS["g"]])
    assert composed(gif((6, 4), local)) == ["rgKKrg KKrgKK rgKKrg KKrgKK"]


@pytest.mark.parametrize("height", [1, 2, 3, 4, 5, 8, 9])
def test_gif_interlaced_frames_of_any_height(height: int) -> None:
    order = [*range(0, height, 8), *range(4, height, 8), *range(2, height, 4), *range(1, height, 2)]
    pixels = [row % 4 for row in order for _ in range(3)]
    rows = " ".join("rgby"[row % 4] * 3 for row in range(height))
    assert composed(gif((3, height), frame(0, 0, 3, height, pixels, interlaced=True))) == [rows]


def test_gif_frame_without_pixels_counts(probe: Callable[[bytes], Probe]) -> None:
    data = gif((6, 4), frame(1, 1, 0, 0), frame(0, 0, 6, 4))
    assert composed(data) == [" ".join(["......"] * 4), FILLED]
    assert probe(data).pages == 2


def test_gif_frame_with_missing_pixels_is_refused(probe: Callable[[bytes], Probe]) -> None:
    short = frame(0, 0, 6, 3).replace(b"\x06\0\x03\0", b"\x06\0\x04\0")
    for data in (gif((6, 4), short), gif((6, 4), frame(0, 0, 6, 4), short)):
        with pytest.raises(Rejected, match="damaged-image"):
            probe(data)


def test_gif_frames_larger_than_the_screen(probe: Callable[[bytes], Probe]) -> None:
    large = frame(0, 0, 1, 1).replace(b"\x01\0\x01\0", b"\xff\xff\xff\xff")
    with pytest.raises(Rejected, match="too-many-pixels"):
        probe(gif((6, 4), frame(0, 0, 6, 4), large))


def test_gif_rendition_skips_a_damaged_frame() -> None:
    broken = frame(0, 0, 6, 4, BLUE)
    broken = broken[: broken.index(lzw([BLUE] * 24))] + b"\2\1\x7f\0"
    data = gif((6, 4), frame(0, 0, 6, 4), broken, frame(0, 0, 1, 1, YELLOW))
    assert composed(data) == [FILLED, FILLED, FILLED.replace("g", "y", 1)]


def test_gif_keeps_delays_and_loops(render: Callable[..., Image.Image]) -> None:
    loop = b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x02\0\0"
    image = render(gif((6, 4), loop, frame(0, 0, 6, 4, disposal=2), frame(1, 1, 2, 2, RED)), "gif")
    assert (image.info["duration"], image.info["loop"]) == (100, 2)
