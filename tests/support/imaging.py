"""Types of the fixtures that probe and render pictures, and remove locations from them."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image

from service.images.probe import Probe
from worker.imaging.location_removal.regions import Patch

ProbeBytes = Callable[..., Probe]
RenderBytes = Callable[..., Image.Image]
RenderFile = Callable[..., bytes]
Shown = Callable[..., Image.Image]
Find = Callable[[bytes], list[Patch]]
Strip = Callable[[bytes], bytes]
