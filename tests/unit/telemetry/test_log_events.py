"""docs/log-events.md against the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
EVENT = re.compile(r"[a-z_]+\.[a-z_]+")
# Calls with strings that look like events.
OTHER_CALLS = {"get_logger", "getLogger", "with_name", "Path"}
DEPENDENCIES = ("database", "queue", "storage")


def test_every_log_event_is_documented() -> None:
    table = (ROOT / "docs" / "log-events.md").read_text()
    documented = re.findall(r"^\| `([a-z_.]+)` \|", table, re.MULTILINE)
    assert len(documented) == len(set(documented))
    assert set(documented) == {"request", *find_events()}


def find_events() -> Iterator[str]:
    """Yields the events of service/ and worker/: strings of that form that are passed to a call."""
    for folder in ("service", "worker"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and name_of(node.func) not in OTHER_CALLS:
                    for argument in node.args:
                        yield from events_in(argument)


def name_of(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def events_in(argument: ast.expr) -> Iterator[str]:
    match argument:
        case ast.Constant(value=str(text)) if EVENT.fullmatch(text):
            yield text
        case ast.JoinedStr(values=[ast.FormattedValue(), ast.Constant(value=".available" | ".unavailable" as ending)]):
            yield from (f"{name}{ending}" for name in DEPENDENCIES)
