"""The tables of this version of Daguerre, and the steps that bring older tables to the same shape."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_SCHEMA_FILE = Path(__file__).parents[1] / "schema.sql"  # a link to the one at the top of the repository
# The tables before the first step, which an even older database gets first. Every statement in it is idempotent.
_FIRST_FILE = Path(__file__).parent / "versions" / "0003.sql"
_STEPS = Path(__file__).parent / "steps"

_VERSION = re.compile(r"-- version: (?P<version>[1-9][0-9]*)\n")
_TABLE = re.compile(r"^create table (\w+)", re.MULTILINE)
_FUNCTION = re.compile(r"^create function (\w+)", re.MULTILINE)
_CONCURRENT_INDEX = re.compile(
    r"^create (?:unique )?index concurrently if not exists (?P<name>\w+)", re.MULTILINE | re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Step:
    """Brings the tables of the version before to `version`. `title` says what it adds."""

    version: int
    title: str
    text: str

    @classmethod
    def load(cls, file: Path) -> Step:
        """Reads a file such as `0004-unfinished-uploads.sql`."""
        version, _, title = file.stem.partition("-")
        return cls(int(version), title.replace("-", " "), file.read_text())

    def __str__(self) -> str:
        return f"{self.version} ({self.title})"

    @property
    def concurrent_index(self) -> str | None:
        """Returns the index that the step creates without blocking writers, or None.

        That is not possible in a transaction, so such a step consists of one statement.
        """
        match = _CONCURRENT_INDEX.search(self.text)
        return None if match is None else match["name"]


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables of one version. `text` creates them in a new database; `steps` lead to them from older ones."""

    text: str
    version: int
    steps: Sequence[Step]

    @classmethod
    def load(cls) -> Schema:
        """Returns the schema of this version of Daguerre."""
        first = Step(3, "all tables before the steps", _FIRST_FILE.read_text())
        return cls.parse(_SCHEMA_FILE.read_text(), [first, *map(Step.load, sorted(_STEPS.glob("*.sql")))])

    @classmethod
    def parse(cls, text: str, steps: Sequence[Step] = ()) -> Schema:
        match = _VERSION.match(text)
        assert match is not None  # noqa: S101 - the first line has it
        return cls(text, int(match["version"]), steps)

    @property
    def tables(self) -> list[str]:
        return _TABLE.findall(self.text)

    @property
    def functions(self) -> list[str]:
        return _FUNCTION.findall(self.text)

    def steps_after(self, version: int) -> list[Step]:
        """Returns the steps from the tables of `version` to these, in order."""
        return [step for step in self.steps if step.version > version]


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
