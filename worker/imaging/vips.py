"""Helpers for pyvips: metadata of images, and pixels in memory."""

from __future__ import annotations

import pyvips

from worker.imaging.colour import ICC_PROFILE


def image_orientation(image: pyvips.Image) -> int:
    return valid_orientation(image.get("orientation") if image.get_typeof("orientation") else 1)


def valid_orientation(value: object) -> int:
    """Returns an EXIF orientation, 1 to 8; 1 for any other value."""
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def count_pages(image: pyvips.Image) -> int:
    return int(image.get("n-pages")) if image.get_typeof("n-pages") else 1


def read_blob(image: pyvips.Image, name: str) -> bytes | None:
    return bytes(image.get(name)) if image.get_typeof(name) else None


def replace_profile(image: pyvips.Image, profile: bytes | None) -> pyvips.Image:
    """Returns the image with this ICC profile in place of the one that its decoder found; None means sRGB."""
    if profile is None and not image.get_typeof(ICC_PROFILE):
        return image
    image = image.copy()
    if profile is None:
        image.remove(ICC_PROFILE)
    else:
        image.set_type(pyvips.GValue.blob_type, ICC_PROFILE, profile)
    return image


def fetch_lines(region: pyvips.Region, image: pyvips.Image, height: int) -> pyvips.Image:
    """Returns the first lines as an image in memory. They are decoded in the calling thread."""
    width, interpretation = image.width, image.interpretation
    pixels = region.fetch(0, 0, width, height)
    lines = pyvips.Image.new_from_memory(pixels, width, height, image.bands, image.format)
    # libvips takes one band for grey and three for sRGB.
    return lines if lines.interpretation == interpretation else lines.copy(interpretation=interpretation)


def premultiply(image: pyvips.Image) -> pyvips.Image:
    return image.premultiply(max_alpha=_max_alpha(image)).rint().cast(image.format)


def unpremultiply(image: pyvips.Image) -> pyvips.Image:
    return image.unpremultiply(max_alpha=_max_alpha(image)).rint().cast(image.format)


def _max_alpha(image: pyvips.Image) -> int:
    return 65535 if image.format == "ushort" else 255


def keep_alive(image: pyvips.Image, owner: object) -> None:
    """Keeps `owner`, whose memory the image uses, alive as long as the image. pyvips has no public way to do so."""
    image._references.append(owner)
