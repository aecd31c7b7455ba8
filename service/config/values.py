"""Parsers for values of settings: sizes, rates, periods, networks, widths and storages.

Each is parsed from the text of an environment variable. Errors are ValueErrors whose message is for the operator.
"""

from __future__ import annotations

import ipaddress
import math
import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TypeAlias

# The largest bigint of PostgreSQL.
MAX_SIZE = 2**63 - 1

_SIZE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>[KMGT]?)(?:I?B)?", re.IGNORECASE)
# Longer texts are refused before they are converted, which takes time that grows with the square of the digits.
_MAX_SIZE_LENGTH = 64
_SIZE_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE_NAMES = ("bytes", "KB", "MB", "GB", "TB", "PB")


def parse_size(text: str | int) -> int:
    """Returns the bytes of `50MB`, `2GB`, `1.5g` or a plain number. Units are powers of 1024, as in the API's sizes.

    Raises ValueError, e.g. for more than `MAX_SIZE`.
    """
    size = str(text).strip()
    match = _SIZE.fullmatch(size)
    if match is None:
        raise ValueError(f"{shorten(size)!r} is not a size: write bytes, or a number with KB, MB, GB or TB")
    if len(size) <= _MAX_SIZE_LENGTH:
        num_bytes = int(Decimal(match["number"]) * _SIZE_UNITS[match["unit"].upper()])
        if num_bytes <= MAX_SIZE:
            return num_bytes
    raise ValueError(f"{shorten(size)!r} is too large: the maximum is 8388607TB")


def format_size(size: int) -> str:
    """Returns `2 GB` for 2147483648, `107 MB` for 112332108: powers of 1024, and a decimal below 10 unless it is 0."""
    value, unit = float(size), 0
    while round(value) >= 1024 and unit < len(_SIZE_NAMES) - 1:
        value, unit = value / 1024, unit + 1
    text = f"{value:.1f}".removesuffix(".0") if value < 9.95 else f"{value:.0f}"
    return f"{text} {_SIZE_NAMES[unit]}"


_RATE = re.compile(r"(?P<count>[1-9]\d{0,8})/(?P<unit>[smh])(?:,burst=(?P<burst>[1-9]\d{0,8}))?")
_RATE_UNITS_S = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, slots=True)
class Rate:
    """A limit of requests: `per_s` on average, and `burst` at once. Its text is `100/s,burst=1000`."""

    per_s: float
    burst: int

    def __str__(self) -> str:
        exact = (unit for unit, seconds in _RATE_UNITS_S.items() if round(self.per_s * seconds) / seconds == self.per_s)
        unit = next(exact, "h")
        return f"{round(self.per_s * _RATE_UNITS_S[unit])}/{unit},burst={self.burst}"

    def part(self, share: float) -> Rate:
        """Returns a fraction of the rate, 0 to 1, with a burst of at least one."""
        return Rate(self.per_s * share, math.ceil(self.burst * share))

    @property
    def full_after_s(self) -> float:
        """How long an empty bucket takes until all of the burst is available again."""
        return self.burst / self.per_s

    @property
    def next_after_s(self) -> int:
        """How long an empty bucket takes at most until the next request is allowed, in whole seconds as headers are."""
        return max(1, math.ceil(round(1 / self.per_s, 6)))


def parse_rate(text: str) -> Rate | None:
    """Returns None for an empty text. The default burst is the count of one unit of time. Raises ValueError."""
    if not text.strip():
        return None
    match = _RATE.fullmatch(re.sub(r"\s", "", text))
    if match is None:
        raise ValueError(f"{text!r} is not a rate: write 100/s, 100/m or 100/h, optionally followed by ,burst=1000")
    count = int(match["count"])
    return Rate(count / _RATE_UNITS_S[match["unit"]], int(match["burst"] or count))


_PERIOD = re.compile(r"(?P<number>[0-9]{1,9})(?P<unit>[smhd])")
_PERIOD_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MAX_PERIOD_S = 3650 * 86400


def parse_period(text: str) -> int | None:
    """Returns the seconds of `7d`, `12h`, `30m` or `90s`, and None for an empty text. Raises ValueError."""
    if not text:
        return None
    match = _PERIOD.fullmatch(text.strip().lower())
    seconds = int(match["number"]) * _PERIOD_UNITS_S[match["unit"]] if match else 0
    if not 1 <= seconds <= _MAX_PERIOD_S:
        raise ValueError(f"{shorten(text)!r} is not a time: write a number with s, m, h or d, like 7d; empty is off")
    return seconds


Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_networks(text: str) -> tuple[Network, ...]:
    """Returns the networks of `10.0.0.0/8, fd00::/8`. Raises ValueError."""
    return tuple(ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip())


def parse_widths(text: str) -> tuple[int, ...]:
    """Returns the widths of `320,640,1280` in ascending order. Raises ValueError."""
    try:
        widths = sorted({int(part) for part in text.split(",") if part.strip()})
    except ValueError:
        raise ValueError(f"{text!r} is not a list of widths: write 320,640,1280") from None
    if widths and not 1 <= widths[0] <= widths[-1] <= 8192:
        raise ValueError("a width must be 1 to 8192 pixels")
    return tuple(widths)


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """The place of files in an object store. Its text is `s3://bucket/prefix`.

    `scheme` is `s3`, `gs` or `az`. `prefix` may be empty, and neither begins nor ends with a slash.
    """

    scheme: str
    bucket: str
    prefix: str = ""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")


# The names that all three stores allow; S3 also allows dots, which break its certificates.
_STORE_URL = re.compile(
    r"(?P<scheme>s3|gs|az)://(?P<bucket>[a-z0-9][a-z0-9._-]{1,61}[a-z0-9])(?P<prefix>(?:/[\w.=@+-]+)*)/?", re.ASCII
)


def parse_storage(text: str) -> Path | StoreUrl:
    """Returns the path of a folder, or the URL of an object store. Raises ValueError."""
    if "://" not in text:
        return Path(text)
    match = _STORE_URL.fullmatch(text.strip())
    if match is None or {".", ".."} & set(match["prefix"].split("/")):
        raise ValueError("must be a folder or a URL like s3://bucket/prefix, without keys")  # which it may contain
    return StoreUrl(match["scheme"], match["bucket"], match["prefix"].removeprefix("/"))


_MAX_SHOWN_LENGTH = 40


def shorten(text: str) -> str:
    """Returns the text as an error shows it: its first 40 characters."""
    return text if len(text) <= _MAX_SHOWN_LENGTH else f"{text[:_MAX_SHOWN_LENGTH]}…"
