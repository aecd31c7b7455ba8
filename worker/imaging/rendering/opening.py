"""A picture opened for a rendition of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from worker.imaging.formats import FORMATS, recognise
from worker.imaging.formats.original import Frames, Original
from worker.imaging.formats.source import File, open_source


@contextmanager
def opened(file: File, max_pixels: int, which: Frames) -> Iterator[Original]:
    """Raises what `open_source` does, also where a decoder fails inside of the context."""
    with open_source(file, max_pixels) as source:
        yield FORMATS[recognise(source)].open_original(source, which)
