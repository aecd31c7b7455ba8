"""A picture's file while it is looked at."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyvips

from service.probes import Rejected

# Frames of an animation, pages of a TIFF: each is decoded, and each has a cost of its own.
MAX_PAGES = 10_000


@dataclass(frozen=True, slots=True)
class Source:
    """A file to load: the path for libvips, the same file opened for our own small reads."""

    path: str
    fd: int
    max_pixels: int

    def admit(self, width: int, height: int, pages: int = 1) -> None:
        if width * height * pages > self.max_pixels or pages > MAX_PAGES:
            raise Rejected("too-many-pixels")


def reader(data: bytes) -> Callable[[int, int], bytes]:
    """As `os.pread` of a file: returns up to `size` bytes (first parameter) from an offset (second)."""
    return lambda size, at: data[at : at + size]


@contextmanager
def open_source(path: str, max_pixels: int) -> Iterator[Source]:
    """Raises Rejected, also where a decoder fails inside of the context, and OSError where the file cannot be read."""
    # What a picture before this one left there without failing would be read as a message about this one.
    pyvips.vips_lib.vips_error_clear()
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with _refusing_damage():
            yield Source(path, fd, max_pixels)
    except Rejected:
        Path(path).stat()  # FileNotFoundError if it was moved before a decoder opened it: not the picture's fault
        raise
    finally:
        os.close(fd)


@contextmanager
def _refusing_damage() -> Iterator[None]:
    try:
        yield
    except pyvips.Error as error:
        raise Rejected("damaged-image") from error
    except UnicodeDecodeError as error:
        # libvips's message repeats bytes of the file, and pyvips takes them for UTF-8 before it empties the buffer.
        pyvips.vips_lib.vips_error_clear()
        raise Rejected("damaged-image") from error
