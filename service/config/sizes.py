"""Readable sizes, as the API's account object has them."""

from __future__ import annotations

_UNITS = ("bytes", "KB", "MB", "GB", "TB", "PB")


def readable(size: int) -> str:
    """2147483648 is "2 GB", 112332108 "107 MB": powers of 1024, one decimal below 10 with .0 dropped, none above."""
    value, unit = float(size), 0
    while round(value) >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    text = f"{value:.1f}".removesuffix(".0") if value < 9.95 else f"{value:.0f}"
    return f"{text} {_UNITS[unit]}"
