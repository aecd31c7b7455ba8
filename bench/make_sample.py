"""Draws the landscape that `./run up` suggests to upload.

Usage: `python -m bench.make_sample service/launcher/embedded/sample.jpg`.

It is drawn, so that its licence is ours. It has the EXIF of a camera, so that an upload of it returns every field.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

Array = npt.NDArray[np.float64]

WIDTH, HEIGHT, HORIZON, SUN = 1600, 1067, 640, (1010, 372)
RANDOM = np.random.default_rng(1839)


def noise(length: int, octaves: range, roughness: float) -> Array:
    """Returns fractal noise along a line, from about -1 to 1."""
    total = np.zeros(length)
    for octave in octaves:
        knots = RANDOM.normal(size=2**octave + 3)
        at = np.linspace(0, 2**octave, length)
        left, part = at.astype(int), at % 1
        smooth = part * part * (3 - 2 * part)
        total += (knots[left] * (1 - smooth) + knots[left + 1] * smooth) * roughness**octave
    return total


def plane(across: int, down: int, octaves: int, roughness: float) -> Array:
    """Returns fractal noise for the whole picture, from about -1 to 1. The first octave has `across` x `down` cells."""
    total = np.zeros((HEIGHT, WIDTH))
    for octave in range(octaves):
        cells = RANDOM.normal(size=(down * 3 * 2**octave, across * 2**octave))
        total += (
            np.asarray(Image.fromarray(cells).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) * roughness**octave
        )
    return total


def colour(text: str) -> Array:
    return np.array([int(text[index : index + 2], 16) for index in (0, 2, 4)], dtype=float)


def sky() -> Array:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(float)
    stops = np.array([0, 250, 430, 560, HORIZON])
    shades = np.stack([colour(c) for c in ("27406e", "5b76a6", "b79bb0", "f2b48c", "fbd9a5")])
    picture = np.stack([np.interp(y, stops, shades[:, band]) for band in range(3)], axis=-1)
    distance = np.hypot(x - SUN[0], (y - SUN[1]) * 1.1)
    glow = np.exp(-distance / 170)[..., None] * 0.85 + np.exp(-((distance / 25) ** 6))[..., None]
    picture += (colour("fff3d2") - picture) * np.clip(glow, 0, 1)
    clouds = (1 - np.exp(-np.clip(plane(4, 3, 7, 0.62) - 0.15, 0, None))) * np.interp(
        y, [0, 90, 300, 440, 520], [0.2, 0.7, 1, 0.5, 0]
    )
    lit = np.exp(-distance / 420)[..., None]
    picture += (colour("d9b7bd") * (1 - lit) + colour("ffe3b8") * lit - picture) * (0.9 * clouds)[..., None]
    return picture


def mountains(picture: Array) -> None:
    layers = (  # height of the ridge, its relief, colour, colour of the haze at its foot
        (470, 92, "8f86a6", "e8b699"),
        (530, 70, "6c6a90", "d6a294"),
        (575, 46, "4a4f74", "a98490"),
        (612, 26, "2b3550", "6a6078"),
    )
    rows = np.arange(HEIGHT)[:, None]
    for number, (height, relief, top, foot) in enumerate(layers):
        ridge = height - relief * noise(WIDTH, range(2 + number // 2, 10), 0.52)
        below = np.clip(rows - ridge[None, :], 0, 1)[..., None]
        depth = np.clip((rows - ridge[None, :]) / (HORIZON - height + relief), 0, 1)[..., None]
        slope = np.gradient(ridge)[None, :, None] * (1 - depth) ** 4 * 10
        shade = colour(top) + (colour(foot) - colour(top)) * depth**1.5 + slope
        picture += (shade - picture) * below


def lake(picture: Array) -> None:
    rows = np.arange(HORIZON, HEIGHT)
    depth = (rows - HORIZON) / (HEIGHT - HORIZON)
    mirrored = np.clip(HORIZON - 1 - (rows - HORIZON) * 1.25, 0, HORIZON - 1)
    columns = np.arange(WIDTH)
    for row, source, far in zip(rows, mirrored, depth, strict=True):
        wave = noise(WIDTH, range(3, 8), 0.8) * (1 + 16 * far)
        line = picture[np.clip(source + wave * 1.6, 0, HORIZON - 1).astype(int), columns]
        picture[row] = line * (0.86 - 0.34 * far) + colour("1d3350") * (0.10 + 0.30 * far)
        glitter = np.exp(-(((columns - SUN[0]) / (26 + 190 * far)) ** 2)) * np.clip(wave / (1 + 16 * far), 0, 1)
        picture[row] += glitter[:, None] * (colour("ffd9a0") - picture[row]) * 0.75


def firs(picture: Array) -> None:
    shore = HEIGHT - 62 + 26 * noise(WIDTH, range(1, 8), 0.55)
    rows = np.arange(HEIGHT)[:, None]
    mask = np.clip(rows - shore[None, :], 0, 1)
    for centre, tall in [
        (70, 560),
        (175, 400),
        (265, 270),
        (20, 330),
        (1540, 480),
        (1450, 300),
        (1375, 190),
        (1595, 380),
    ]:
        foot = HEIGHT - 20
        for row in range(foot - tall, foot):
            part = (row - foot + tall) / tall
            tier = (part * 17) % 1
            half = tall * 0.2 * part**0.9 * (0.5 + 0.5 * tier) + 1.2
            left = int(centre - half * RANDOM.uniform(0.75, 1.05))
            right = int(centre + half * RANDOM.uniform(0.75, 1.05)) + 1
            mask[row, max(left, 0) : max(right, 0)] = 1
    texture = RANDOM.normal(size=(HEIGHT, WIDTH, 1)) * 4
    picture += (colour("101c26") + texture - picture) * mask[..., None]


def exif() -> Image.Exif:
    tags = Image.Exif()
    tags[0x010E] = "A lake at sunrise"
    tags[0x010F], tags[0x0110], tags[0x0131] = "Daguerre", "Plate 1839", "Daguerre sample"
    tags[0x0112] = 1
    tags[0x0132] = "2024:08:19 06:12:41"
    tags[0x8298] = "CC0"
    tags.get_ifd(0x8769).update(
        {
            0x829A: IFDRational(1, 250),  # ExposureTime
            0x829D: IFDRational(80, 10),  # FNumber
            0x8827: 100,  # ISO
            0x9000: b"0232",
            0x9003: "2024:08:19 06:12:41",  # DateTimeOriginal
            0x9004: "2024:08:19 06:12:41",
            0x9011: "+02:00",
            0x920A: IFDRational(35, 1),  # FocalLength
            0xA001: 1,
            0xA002: WIDTH,
            0xA003: HEIGHT,
            0xA434: "35mm F2",
        }
    )
    tags.get_ifd(0x8825).update(
        {
            0: b"\x02\x03\x00\x00",
            1: "N",
            2: (IFDRational(46, 1), IFDRational(31, 1), IFDRational(1230, 100)),
            3: "E",
            4: (IFDRational(8, 1), IFDRational(2, 1), IFDRational(4120, 100)),
            5: b"\x00",
            6: IFDRational(566, 1),
        }
    )
    return tags


def main(target: Path) -> None:
    picture = sky()
    mountains(picture)
    lake(picture)
    firs(picture)
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    picture *= (1 - 0.16 * (x**2 + y**2))[..., None]
    picture += RANDOM.normal(size=(HEIGHT, WIDTH, 1)) * 1.6
    image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    image.save(target, quality=72, optimize=True, progressive=True, exif=exif())
    print(f"{target}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
