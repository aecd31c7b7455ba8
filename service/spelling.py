"""Suggestions for misspelt names of parameters and settings."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

# A shorter name is probably not a misspelling: clients add `t`, `v`, `_` or `ts` to bypass caches.
_MIN_LETTERS = 3
_MIN_KNOWN_LETTERS = 4
# Known names of this length and longer may differ by two edits.
_LONG_LETTERS = 8
# Longer than any known name. It limits the time for a client's name.
_MAX_LETTERS = 40
_SEPARATORS = re.compile(r"[^a-z0-9]+")
_QUOTABLE = re.compile(r"[ -~]{1,40}")


def find_near_miss(name: str, known: Iterable[str]) -> str | None:
    """Returns the known name that `name` was most likely meant to be, or None if it is none of them.

    Case and separators do not count, so `withExif` and `tags[]` are near misses. Beyond that, one edit is allowed, or
    two in a known name of 8 letters or more: a letter that is missing, added, replaced, or swapped with the next one.
    """
    if len(_letters(name)) < _MIN_LETTERS:
        return None
    return _find_nearest(name, {other: _max_edits(other) for other in known})


def find_nearest(name: str, known: Collection[str]) -> str | None:
    """Returns the known name that is most like `name`, or None if none is like it.

    A known name is like `name` if edits change at most a third of its letters, or if it is the only one that contains
    `name`.
    """
    nearest = _find_nearest(name, {other: max(1, len(_letters(other)) // 3) for other in known})
    containing = [other for other in known if _letters(name) in _letters(other)]
    is_part = len(_letters(name)) >= _MIN_KNOWN_LETTERS and len(containing) == 1
    return containing[0] if nearest is None and is_part else nearest


def _find_nearest(name: str, max_edits: Mapping[str, int]) -> str | None:
    """`max_edits` maps each known name to the largest distance at which `name` is near to it."""
    letters = _letters(name)
    if len(letters) > _MAX_LETTERS:
        return None
    distances = {
        other: distance(letters, _letters(other))
        for other, limit in max_edits.items()
        if limit >= 0 and abs(len(letters) - len(_letters(other))) <= limit
    }
    near = [other for other in distances if distances[other] <= max_edits[other]]
    return min(near, key=distances.__getitem__, default=None)


def distance(one: str, other: str) -> int:
    """Returns the number of edits between two words: the optimal string alignment distance.

    difflib's ratio would count a swap as two edits, and an edit in a short word as more than one in a long word.
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
    """Returns the name in quotes, or a description if it is long or contains other than visible ASCII characters."""
    return repr(name) if _QUOTABLE.fullmatch(name) else "of the name that was sent"


def _letters(name: str) -> str:
    return _SEPARATORS.sub("", name.lower())


def _max_edits(known: str) -> int:
    length = len(_letters(known))
    return -1 if length < _MIN_KNOWN_LETTERS else 1 if length < _LONG_LETTERS else 2
