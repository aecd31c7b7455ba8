"""The file of a picture while it is decoded."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import pyvips

from service.images.probe import MAX_PAGES, Rejected
from worker.imaging.vips import keep_alive

# In the messages of libvips; the limit is RLIMIT_AS of the decoder process.
_OUT_OF_MEMORY = "out of memory"

# A path, or the descriptor of an open file. A decoder cannot open pictures by path.
File: TypeAlias = str | int


@dataclass(slots=True)
class Source:
    """An open file: `fd` is for our own small reads, `load` for libvips."""

    fd: int
    max_pixels: int
    _data: mmap.mmap | None = None

    def check_size(self, width: int, height: int, pages: int = 1) -> None:
        """Raises Rejected if the picture has too many pixels or pages to decode."""
        if width * height * pages > self.max_pixels or pages > MAX_PAGES:
            raise Rejected("too-many-pixels")

    def load(self, loader: Callable[..., pyvips.Image], **options: object) -> pyvips.Image:
        """Opens the file with a loader of libvips that takes a source, e.g. `pngload_source`.

        libvips reads the mapped file. A loader that reads a descriptor moves its position, which all duplicates share,
        so two images of one file would disturb each other.
        """
        data = self.map()
        image = loader(pyvips.Source.new_from_memory(data), **options)
        # pyvips keeps alive what images refer to, but not what their sources refer to. Regions keep neither, so they
        # need this object.
        keep_alive(image, data)
        return image

    def map(self) -> mmap.mmap:
        """Returns the mapped file."""
        if self._data is None:
            self._data = mmap.mmap(self.fd, 0, access=mmap.ACCESS_READ)
        return self._data

    def read_all(self) -> bytes:
        return os.pread(self.fd, os.fstat(self.fd).st_size, 0)


@contextmanager
def open_source(file: File, max_pixels: int) -> Iterator[Source]:
    """Opens a picture. Raises Rejected, also if a decoder fails inside the block, and OSError if the file cannot be
    read.
    """
    # A message of an earlier picture would be mistaken for one about this picture.
    pyvips.vips_lib.vips_error_clear()
    with open_file(file) as fd, _reject_damage():
        source = Source(fd, max_pixels)  # lives as long as the context
        yield source


@contextmanager
def open_file(file: File) -> Iterator[int]:
    """Yields the descriptor. Closes the file if it was a path; a descriptor belongs to the caller and stays open."""
    if isinstance(file, int):
        yield file
        return
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _reject_damage() -> Iterator[None]:
    try:
        yield
    except pyvips.Error as error:
        raise Rejected("probe-failed" if _OUT_OF_MEMORY in str(error) else "damaged-image") from error
    except UnicodeDecodeError as error:
        # libvips's message contains bytes of the file, which pyvips decodes as UTF-8 before it empties the buffer.
        pyvips.vips_lib.vips_error_clear()
        raise Rejected("damaged-image") from error
