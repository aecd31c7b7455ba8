"""Types of the fixtures that probe and render pictures."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image

from service.images.probe import Probe

ProbeBytes = Callable[..., Probe]
RenderBytes = Callable[..., Image.Image]
