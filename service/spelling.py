"""Misspelt names: of parameters and of settings."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

# A shorter name is as near to a misspelt one as to something else: `t`, `v`, `_` and `ts` bust caches.
_MIN_LETTERS = 3
_MIN_KNOWN_LETTERS = 4
# From this length on, two slips are allowed.
_LONG_LETTERS = 8
# No known name is as long as that; it bounds the time that a stranger's name takes.
_MAX_LETTERS = 40
_SEPARATORS = re.compile(r"[^a-z0-9]+")
_QUOTABLE = re.compile(r"[ -~]{1,40}")


def find_near_miss(name: str, known: Iterable[str]) -> str | None:
    """Returns the known name that `name` was most likely meant to be, or None if it is none of them.

    Case and separators do not count, so `withExif` and `tags[]` are near misses. Beyond that, one slip is allowed, or
    two in a known name of 8 letters or more: a letter that is missing, added, replaced, or swapped with the next one.
    """
    if len(_letters(name)) < _MIN_LETTERS:
        return None
    return _find_nearest(name, {other: _count_slips(other) for other in known})


def find_nearest(name: str, known: Collection[str]) -> str | None:
    """Returns the known name that is most like `name`, or None if none is like it.

    It has two thirds of its letters in place, or is the only one that holds the whole of `name`.
    """
    nearest = _find_nearest(name, {other: max(1, len(_letters(other)) // 3) for other in known})
    holding = [other for other in known if _letters(name) in _letters(other)]
    is_part = len(_letters(name)) >= _MIN_KNOWN_LETTERS and len(holding) == 1
    return holding[0] if nearest is None and is_part else nearest


def _find_nearest(name: str, slips: Mapping[str, int]) -> str | None:
    """`slips` holds the known names, with the largest distance at which `name` is still near to each."""
    letters = _letters(name)
    if len(letters) > _MAX_LETTERS:
        return None
    distances = {
        other: distance(letters, _letters(other))
        for other, most in slips.items()
        if most >= 0 and abs(len(letters) - len(_letters(other))) <= most
    }
    near = [other for other in distances if distances[other] <= slips[other]]
    return min(near, key=distances.__getitem__, default=None)


def distance(one: str, other: str) -> int:
    """Returns how many slips lie between two words, as the optimal string alignment distance.

    difflib's ratio does not serve here: it counts a swap as two slips, and a slip more the shorter the word is.
    """
    above: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        before, above, row = above, row, [i]
        for j, target in enumerate(other, 1):
            cost = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (letter != target))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == target:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
    return row[-1]


def quote(name: str) -> str:
    """Returns the name in quotes, or a word for it if it is long or holds more than visible ASCII characters."""
    return repr(name) if _QUOTABLE.fullmatch(name) else "of the name that was sent"


def _letters(name: str) -> str:
    return _SEPARATORS.sub("", name.lower())


def _count_slips(known: str) -> int:
    length = len(_letters(known))
    return -1 if length < _MIN_KNOWN_LETTERS else 1 if length < _LONG_LETTERS else 2
