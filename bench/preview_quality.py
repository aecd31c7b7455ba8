"""Compares encoders for previews of at most 500 bytes, and measures the CPU time of a probe.

    python -m bench.preview_quality [FOLDER]    a table for the photographs in FOLDER (default: a few generated ones)
    python -m bench.preview_quality --speed     CPU milliseconds per probe, for photographs of three sizes

Each candidate encodes each photograph at the best quality that fits. The preview is scaled up (bicubic) to a display
size of 320 pixels and compared with the photograph at that size by SSIM, averaged over red, green and blue: unchanged,
and with both blurred like on a page (sigma 6). The rows of libvips show what sharp can do, which has the same encoder.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyvips
from PIL import Image, ImageOps

from bench.photographs import SIZES, photograph
from service.images.probe import MAX_PREVIEW_BYTES, Rejected
from worker import imaging
from worker.imaging.preview import without_spare_headers

DISPLAY_PX = 320
BLUR_SIGMA = 6.0
QUALITIES = range(1, 101)

Pixels = npt.NDArray[np.float32]
Encode = Callable[[Image.Image, int], bytes]  # the int is one of QUALITIES


@dataclass(frozen=True)
class Candidate:
    px: int
    subsampling: str
    table: str
    encode: Encode


@dataclass(frozen=True)
class Photograph:
    path: Path
    displayed: Image.Image
    sharp: Reference
    blurred: Reference


class Reference:
    """One side of an SSIM comparison, with everything precomputed that does not depend on the other side."""

    def __init__(self, pixels: Pixels) -> None:
        self.pixels = pixels
        self.mean = convolve(pixels, _WINDOW)
        self.variance = convolve(pixels * pixels, _WINDOW) - self.mean**2

    def ssim(self, other: Pixels) -> float:
        """Returns the SSIM (Wang et al. 2004) with an 11 x 11 Gaussian window of sigma 1.5, K = 0.01 and 0.03."""
        mean = convolve(other, _WINDOW)
        variance = convolve(other * other, _WINDOW) - mean**2
        covariance = convolve(other * self.pixels, _WINDOW) - mean * self.mean
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        numerator = (2 * mean * self.mean + c1) * (2 * covariance + c2)
        return float((numerator / ((mean**2 + self.mean**2 + c1) * (variance + self.variance + c2))).mean())


def gaussian(sigma: float, radius: int) -> Pixels:
    weights = np.exp(-(np.arange(-radius, radius + 1, dtype=np.float32) ** 2) / (2 * sigma**2))
    return np.asarray(weights / weights.sum(), dtype=np.float32)


_WINDOW = gaussian(1.5, 5)
_BLUR = gaussian(BLUR_SIGMA, round(3 * BLUR_SIGMA))


def convolve(pixels: Pixels, kernel: Pixels) -> Pixels:
    """Convolves along both axes, with the borders repeated."""
    radius = len(kernel) // 2
    for axis in (0, 1):
        padding = [(radius, radius) if side == axis else (0, 0) for side in range(pixels.ndim)]
        padded, length = np.pad(pixels, padding, mode="edge"), pixels.shape[axis]
        pixels = np.zeros_like(pixels)
        for i, weight in enumerate(kernel):
            pixels += weight * padded.take(range(i, i + length), axis=axis)
    return pixels


def read(paths: list[Path]) -> Iterator[Photograph]:
    for path in paths:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
        image.thumbnail((DISPLAY_PX, DISPLAY_PX), Image.Resampling.BOX)
        pixels = np.asarray(image, dtype=np.float32)
        yield Photograph(path, image, Reference(pixels), Reference(convolve(pixels, _BLUR)))


def score(photo: Photograph, preview: bytes) -> tuple[float, float]:
    """Returns the SSIM of the preview, unchanged and blurred."""
    with Image.open(io.BytesIO(preview)) as small:
        preview_pixels = small.convert("RGB").resize(photo.displayed.size, Image.Resampling.BICUBIC)
    pixels = np.asarray(preview_pixels, dtype=np.float32)
    return photo.sharp.ssim(pixels), photo.blurred.ssim(convolve(pixels, _BLUR))


def by_libvips(table: int, *, trellis: bool) -> Encode:
    def encode(image: Image.Image, quality: int) -> bytes:
        pixels = pyvips.Image.new_from_memory(image.tobytes(), image.width, image.height, 3, "uchar")
        data: bytes = pixels.copy(interpretation="srgb").jpegsave_buffer(
            Q=quality, quant_table=table, trellis_quant=trellis, optimize_coding=True, subsample_mode="on", keep="none"
        )
        return data

    return encode


def by_pillow(slope: float, subsampling: str, *, strip: bool = True) -> Encode:
    """Returns an encoder with one quantization table, whose steps rise by `slope` of the first with each frequency."""

    def encode(image: Image.Image, quality: int) -> bytes:
        step = 255 * 0.955**quality
        table = [min(255, max(1, round(step * (1 + slope * (u + v))))) for v in range(8) for u in range(8)]
        out = io.BytesIO()
        image.save(out, "JPEG", qtables=[table], subsampling=subsampling, optimize=True)
        return without_spare_headers(out.getvalue()) if strip else out.getvalue()

    return encode


SHARP = [
    *(Candidate(px, "4:2:0", "standard", by_libvips(0, trellis=False)) for px in (24, 32, 40, 48)),
    *(Candidate(px, "4:2:0", "standard, trellis", by_libvips(0, trellis=True)) for px in (40, 48)),
    *(Candidate(px, "4:2:0", "ImageMagick's, trellis", by_libvips(3, trellis=True)) for px in (40, 48, 56)),
    *(Candidate(px, "4:2:0", "flat, trellis", by_libvips(1, trellis=True)) for px in (40, 48, 56)),
]
CANDIDATES = [
    *SHARP,
    Candidate(48, "4:2:0", "one, rising, all headers", by_pillow(0.1, "4:2:0", strip=False)),
    Candidate(48, "4:2:0", "one, flat", by_pillow(0.0, "4:2:0")),
    Candidate(48, "4:2:0", "one, rising steeply", by_pillow(0.3, "4:2:0")),
    Candidate(48, "4:4:4", "one, rising", by_pillow(0.1, "4:4:4")),
    *(Candidate(px, "4:2:0", "one, rising", by_pillow(0.1, "4:2:0")) for px in (32, 40, 48, 56, 64)),
]


def best_that_fits(image: Image.Image, candidate: Candidate) -> tuple[int, bytes] | None:
    """Returns the highest quality whose preview fits, and that preview. Returns None if none fits."""
    small = image.copy()
    small.thumbnail((candidate.px, candidate.px), Image.Resampling.HAMMING, reducing_gap=None)
    low, high, best = QUALITIES.start, QUALITIES.stop - 1, None
    while low <= high:
        quality = (low + high) // 2
        data = candidate.encode(small, quality)
        if len(data) <= MAX_PREVIEW_BYTES:
            best, low = (quality, data), quality + 1
        else:
            high = quality - 1
    return best


def compare(photos: list[Photograph]) -> None:
    print(f"{len(photos)} photographs, at most {MAX_PREVIEW_BYTES} bytes")
    columns = f"{'Q':>4} {'bytes':>6} {'fits':>5} {'SSIM':>7} {'blurred':>8}"
    print(f"{'px':>4}  {'chroma':6}  {'quantization table':26} {columns}")
    for candidate in CANDIDATES:
        results = []
        for photo in photos:
            best = best_that_fits(photo.displayed, candidate)
            if best is not None:
                results.append((best[0], len(best[1]), *score(photo, best[1])))
        print_row(f"{candidate.px:4}  {candidate.subsampling:6}  {candidate.table:26}", results, len(photos))
    results = []
    for photo in photos:
        data = imaging.probe(str(photo.path), max_pixels=1_000_000_000).mini_preview
        results.append((0, len(data), *score(photo, data)))
    print_row(f"{'':14}{'of a probe':26}", results, len(photos))


def print_row(name: str, results: list[tuple[int, int, float, float]], photos: int) -> None:
    if not results:
        print(name, "none fits")
        return
    quality, size, sharp, blurred = np.mean(results, axis=0)
    print(f"{name} {quality or float('nan'):4.0f} {size:6.0f} {len(results) / photos:5.0%} {sharp:7.4f} {blurred:8.4f}")


def generate(folder: Path) -> None:
    """Writes the sample landscape, and pictures of clouds and edges whose spectrum is that of photographs."""
    (folder / "landscape.jpg").write_bytes(photograph("s"))
    for seed in range(5):
        noise = np.random.default_rng(seed)
        rows, columns = np.meshgrid(np.fft.fftfreq(480), np.fft.fftfreq(640), indexing="ij")
        amplitude = 1 / np.maximum(np.hypot(rows, columns), 1 / 640) ** 1.2
        grey, *tints = (np.fft.ifft2(amplitude * np.exp(2j * np.pi * noise.random((480, 640)))).real for _ in range(4))
        bands = np.stack([grey + 0.3 * tint for tint in tints], axis=2)
        bands[bands[..., 0] > bands.std()] += bands.std()  # an edge
        scaled = 128 + 55 * (bands - bands.mean()) / bands.std()
        Image.fromarray(scaled.clip(0, 255).astype(np.uint8)).save(folder / f"clouds-{seed}.png")


def measure_speed(folder: Path) -> None:
    print("CPU milliseconds per probe (minimum of 5 rounds)")
    for size, rounds in zip(SIZES, (40, 12, 3), strict=True):
        path = folder / f"{size}.jpg"
        path.write_bytes(photograph(size))
        costs = []
        for _ in range(5):
            started = time.process_time()
            for _ in range(rounds):
                imaging.probe(str(path), max_pixels=1_000_000_000)
            costs.append((time.process_time() - started) / rounds * 1000)
        width, height, _ = SIZES[size]
        print(f"{size}  {width} x {height}  {path.stat().st_size / 1000:6.0f} KB  {min(costs):7.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--speed", action="store_true")
    options = parser.parse_args()
    imaging.prepare()
    with tempfile.TemporaryDirectory() as scratch:
        if options.speed:
            measure_speed(Path(scratch))
            return
        folder = options.folder or Path(scratch)
        if options.folder is None:
            generate(folder)
        paths = []
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            try:
                probe = imaging.probe(str(path), max_pixels=1_000_000_000)
            except Rejected as error:
                print(f"{path.name}: {error.code}")
                continue
            if probe.format not in {"heic", "svg"}:  # Pillow, which opens the original, cannot read these
                paths.append(path)
        compare(list(read(paths)))


if __name__ == "__main__":
    main()
