"""Log lines for people: the event, then its fields, wrapped to fit a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from datetime import datetime
from typing import Any

MAX_COLUMNS = 100
_INDENT = "    "
DIM, BOLD = "2", "1"
_LEVELS = {"warning": "33", "error": "31", "critical": "31"}
_BLOCKS = ("exception", "stack")
_LEADING = ("method", "path")


class ConsoleRenderer:
    """The last processor of a chain. Returns one event as a line, wrapped between fields if it is longer than 100
    columns.

    A process is shown as its part and pid, e.g. `api/4711`. Request lines are the most frequent, so they are short: the
    request id is `id`, and the process is left out. JSON has both in full.
    """

    def __init__(self, *, colours: bool) -> None:
        self._colours = colours

    def __call__(self, _logger: object, _name: str, event: MutableMapping[str, Any]) -> str:
        words = [(self._paint(text, colour), len(text)) for text, colour in _words(event)]
        blocks = [str(event[name]) for name in _BLOCKS if event.get(name)]
        return "\n".join([_fold(words), *blocks])

    def _paint(self, text: str, colour: str) -> str:
        return paint(text, colour) if self._colours and colour else text


def paint(text: str, colour: str) -> str:
    """Returns the text with the escapes of a terminal."""
    return f"\x1b[{colour}m{text}\x1b[0m"


def _words(event: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields words with their colours. A word that is longer than a line is cut into several."""
    fields = {name: value for name, value in event.items() if name not in _BLOCKS}
    level = fields.pop("level", "info")
    yield _time(fields.pop("timestamp", "")), DIM
    name = str(fields.pop("event", ""))
    for piece in _cut(name):
        yield piece, BOLD
    if level in _LEVELS:
        yield level.upper(), _LEVELS[level]
    if name == "request":
        fields = {"id" if key == "request_id" else key: value for key, value in fields.items()}
        leading = [fields.pop(key) for key in _LEADING if key in fields]
        fields = dict(sorted(fields.items(), key=lambda field: field[0] == "id"))
        yield from ((piece, "") for value in leading for piece in _cut(_show(value)))
    part, pid = fields.pop("part", None), fields.pop("pid", None)
    yield from ((piece, "") for key, value in fields.items() for piece in _cut(f"{key}={_show(value)}"))
    if part is not None and name != "request":
        yield f"{part}/{pid}", DIM


def _time(timestamp: object) -> str:
    """Returns the time in UTC, to the millisecond."""
    moment = timestamp if isinstance(timestamp, datetime) else None
    if moment is None:
        try:
            moment = datetime.fromisoformat(str(timestamp))
        except ValueError:
            return str(timestamp)
    return moment.replace(tzinfo=None).isoformat(" ", "milliseconds") + "Z"


def _show(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    is_plain = text and not any(letter in text for letter in " =\"'") if isinstance(value, str) else True
    return text if is_plain else repr(text)


def _cut(word: str) -> Iterator[str]:
    """Cuts a word to the width of a line, if possible not within an escape such as `\\x1b`."""
    width = MAX_COLUMNS - len(_INDENT)
    while len(word) > width:
        end = word.rfind("\\", width - 10, width)
        end = end if end > 0 else width
        yield word[:end]
        word = word[end:]
    yield word


def _fold(words: list[tuple[str, int]]) -> str:
    lines, column = [""], 0
    for text, width in words:
        if column and column + 1 + width > MAX_COLUMNS:
            lines.append(_INDENT + text)
            column = len(_INDENT) + width
        else:
            lines[-1] += f" {text}" if column else text
            column += width + (1 if column else 0)
    return "\n".join(lines)
