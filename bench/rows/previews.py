"""The quality of previews of at most 500 bytes: those of a probe, and the best that sharp's encoder can do.

bench/preview_quality.py explains how similarity is measured, and compares more encoders.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from bench import preview_quality as quality
from service.images.probe import MAX_PREVIEW_BYTES
from worker import imaging


def run(folder: Path, *, rounds: int, seconds: float, sizes: Sequence[str]) -> None:  # noqa: ARG001 - nothing is timed
    imaging.prepare()
    quality.generate(folder)
    photos = list(quality.read(sorted(folder.iterdir())))
    ours = [imaging.probe(str(photo.path), max_pixels=1_000_000_000).mini_preview for photo in photos]
    mean_ours = _mean_ssim(photos, ours)
    mean_theirs, theirs = max(_encode_by_sharp(photos), key=lambda result: result[0])
    print(f"\nPreviews of {len(photos)} photographs\n")
    print("| previews | bytes, max | SSIM, mean |")
    print("|---|---|---|")
    for name, previews, mean in (("Daguerre", ours, mean_ours), ("sharp at its best", theirs, mean_theirs)):
        print(f"| {name} | {max(map(len, previews))} | {mean:.4f} |")
    fits = "yes" if all(len(preview) <= MAX_PREVIEW_BYTES for preview in ours) else "no"
    print(f"\nAll of Daguerre's within {MAX_PREVIEW_BYTES} bytes: {fits}")
    verdict = "reached" if mean_ours >= mean_theirs else f"missed by {mean_theirs - mean_ours:.4f}"
    print(f"\nDaguerre's SSIM at least sharp's: {verdict}")


def _encode_by_sharp(photos: Sequence[quality.Photograph]) -> list[tuple[float, list[bytes]]]:
    """Returns the mean SSIM and the previews of each setting with which all photographs fit."""
    results = []
    for candidate in quality.SHARP:
        best = [quality.best_that_fits(photo.displayed, candidate) for photo in photos]
        previews = [result[1] for result in best if result is not None]
        if len(previews) == len(photos):
            results.append((_mean_ssim(photos, previews), previews))
    return results


def _mean_ssim(photos: Sequence[quality.Photograph], previews: Sequence[bytes]) -> float:
    return statistics.mean(quality.score(photo, preview)[0] for photo, preview in zip(photos, previews, strict=True))
