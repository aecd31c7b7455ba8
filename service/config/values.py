"""What settings hold beside numbers and words: sizes, rates, periods, networks and widths."""

from __future__ import annotations

import ipaddress
import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Self, TypeAlias

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

# What a bigint of PostgreSQL holds.
MAX_SIZE = 2**63 - 1

_SIZE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>[KMGT]?)(?:I?B)?", re.IGNORECASE)
# More digits than that are refused before they are converted, which takes the square of their number.
_MAX_SIZE_CHARACTERS = 64
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str | int) -> int:
    """Bytes from `50MB`, `2GB`, `1.5g` or a plain number; units are powers of 1024, as in the API's answers.

    Raises ValueError, also if it is more than `MAX_SIZE`.
    """
    written = str(text).strip()
    match = _SIZE.fullmatch(written)
    if match is None:
        raise ValueError(f"{shorten(written)!r} is not a size: write bytes, or a number with KB, MB, GB or TB")
    if len(written) <= _MAX_SIZE_CHARACTERS:
        size = int(Decimal(match["number"]) * _UNITS[match["unit"].upper()])
        if size <= MAX_SIZE:
            return size
    raise ValueError(f"{shorten(written)!r} is too large a size: it is at most 8388607TB")


_PERIOD = re.compile(r"(?P<number>[0-9]{1,9})(?P<unit>[smhd])")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MAX_PERIOD_S = 3650 * 86400


def parse_period(text: str) -> int | None:
    """Seconds from `7d`, `12h`, `30m` or `90s`; None for the empty text. Raises ValueError."""
    if not text:
        return None
    match = _PERIOD.fullmatch(text.strip().lower())
    seconds = int(match["number"]) * _UNIT_S[match["unit"]] if match else 0
    if not 1 <= seconds <= _MAX_PERIOD_S:
        raise ValueError(f"{shorten(text)!r} is not a time: write a number with s, m, h or d, like 7d; empty is off")
    return seconds


_SHOWN_UNITS = ("bytes", "KB", "MB", "GB", "TB", "PB")


def format_size(size: int) -> str:
    """2147483648 is "2 GB", 112332108 "107 MB": powers of 1024, one decimal below 10 with .0 dropped, none above."""
    value, unit = float(size), 0
    while round(value) >= 1024 and unit < len(_SHOWN_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    text = f"{value:.1f}".removesuffix(".0") if value < 9.95 else f"{value:.0f}"
    return f"{text} {_SHOWN_UNITS[unit]}"


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


def parse_networks(text: str) -> tuple[Network, ...]:
    """Raises ValueError."""
    return tuple(ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip())


def parse_widths(text: str) -> tuple[int, ...]:
    """In rising order. Raises ValueError."""
    try:
        widths = sorted({int(part) for part in text.split(",") if part.strip()})
    except ValueError:
        raise ValueError(f"{text!r} is not a list of widths: write 320,640,1280") from None
    if widths and not 1 <= widths[0] <= widths[-1] <= 8192:
        raise ValueError("a width is 1 to 8192 pixels")
    return tuple(widths)


def shorten(text: str) -> str:
    return text if len(text) <= _MAX_SIZE_CHARACTERS else f"{text[:_MAX_SIZE_CHARACTERS]}…"
