"""A rate as the operator writes it: `100/s,burst=1000`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Self

_SECONDS = {"s": 1, "m": 60, "h": 3600}
_WRITTEN = re.compile(r"(?P<count>[1-9]\d{0,8})/(?P<unit>[smh])(?:,burst=(?P<burst>[1-9]\d{0,8}))?")


@dataclass(frozen=True, slots=True)
class Rate:
    """So many a second in the long run, and `burst` at once."""

    per_s: float
    burst: int

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """None where the text is empty. Without a burst it is what one unit of time allows. Raises ValueError."""
        if not text.strip():
            return None
        match = _WRITTEN.fullmatch(re.sub(r"\s", "", text))
        if match is None:
            raise ValueError(f"{text!r} is not a rate: write 100/s, 100/m or 100/h, and perhaps ,burst=1000 behind it")
        count = int(match["count"])
        return cls(count / _SECONDS[match["unit"]], int(match["burst"] or count))

    def part(self, share: float) -> Rate:
        """A share of it, 0 to 1; at least one at once."""
        return Rate(self.per_s * share, math.ceil(self.burst * share))

    @property
    def full_after_s(self) -> float:
        """How long it takes until all of the burst is there again."""
        return self.burst / self.per_s

    @property
    def next_after_s(self) -> int:
        """How long it takes at the most until there is another request; in whole seconds, as headers tell it."""
        return max(1, math.ceil(round(1 / self.per_s, 6)))
