"""Keeps what `./run bench` prints as JSON: every table under its title, with its date, machine and command.

    ./run bench memory --json bench/figures.json        # adds the tables of this run to those of the file
    python -m bench.figures PRINTED --command "./run bench"   # the same for output that was saved as text

`bench.capacity` computes from this file.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TextIO

FIGURES = Path(__file__).with_name("figures.json")

_HEADER = re.compile(r"(\d{4}-\d\d-\d\d), (.*)")
_NAME_END = re.compile("[:;] ")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


class FigureMissing(Exception):
    """The figures have no such table, row or value."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table with the lines of text below it, as printed."""

    title: str
    date: str
    machine: str
    command: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The title without what differs from run to run, e.g. "Uploads m" of "Uploads m: 2000 x 1500, 254 KB"."""
        return _NAME_END.split(self.title)[0]

    def cell(self, row: str, column: str) -> str:
        """Returns the text in a column of the row whose first cell is `row`. Raises FigureMissing."""
        for cells in self.rows:
            if cells[0] == row and column in self.columns:
                return cells[self.columns.index(column)]
        raise FigureMissing(f"{self.title}: there is no {column} of {row}")

    def value(self, row: str, column: str) -> float:
        """Returns the first number in a cell, e.g. the median of "841 (637 to 943)". Raises FigureMissing."""
        return first_number(self.cell(row, column))

    def line(self, label: str) -> float:
        """Returns the number after "label: " in a line below the table. Raises FigureMissing."""
        for line in self.lines:
            if line.startswith(f"{label}: "):
                return first_number(line.removeprefix(f"{label}: "))
        raise FigureMissing(f"{self.title}: there is no line {label!r}")


class Figures:
    """Tables by their names."""

    def __init__(self, tables: Iterable[Table] = ()) -> None:
        self.tables = {table.name: table for table in tables}

    @classmethod
    def load(cls, path: Path = FIGURES) -> Figures:
        """Returns no tables if there is no such file."""
        entries = json.loads(path.read_text()) if path.exists() else []
        return cls(Table(**entry) for entry in entries)

    def save(self, path: Path = FIGURES) -> None:
        entries = [asdict(table) for _, table in sorted(self.tables.items())]
        path.write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n")

    def add(self, tables: Iterable[Table]) -> None:
        """Replaces tables of the same name."""
        self.tables |= {table.name: table for table in tables}

    def table(self, beginning: str, ending: str = "") -> Table:
        """Returns the table of this name, or the only one that begins and ends like this. Raises FigureMissing."""
        if not ending and beginning in self.tables:
            return self.tables[beginning]
        found = [table for name, table in self.tables.items() if name.startswith(beginning) and name.endswith(ending)]
        if len(found) != 1:
            raise FigureMissing(f"{len(found)} tables are named like {beginning!r} … {ending!r}")
        return found[0]


def first_number(text: str) -> float:
    """Raises FigureMissing."""
    match = _NUMBER.search(text)
    if match is None:
        raise FigureMissing(f"there is no number in {text!r}")
    return float(match[0].replace(",", ""))


def parts(text: str) -> dict[str, float]:
    """Returns {"api": 0.71, "worker": 0.33} for "api 0.71, worker 0.33"."""
    pairs = (part.rpartition(" ") for part in text.split(", "))
    return {name: float(number) for name, _, number in pairs}


def parse(printed: str, command: str) -> list[Table]:
    """Returns the tables in what the benchmark printed. The first line has the date and the machine.

    Each table follows its title, and lines like "label: value" belong to the table above them. A table without rows, of
    a run that was interrupted, is left out.
    """
    tables: list[Table] = []
    date = machine = title = ""
    is_in_table = False
    for line in printed.splitlines():
        header = _HEADER.fullmatch(line)
        if header is not None:
            date, machine = header[1], header[2]
        elif line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if not is_in_table:
                if tables and tables[-1].lines[-1:] == [title]:  # it was taken for a line below the table before
                    tables[-1].lines.pop()
                tables.append(Table(title, date, machine, command, cells))
            elif not set(line) <= set("|-"):
                tables[-1].rows.append(cells)
        elif line:
            title = line
            if tables and ": " in line:
                tables[-1].lines.append(line)
        is_in_table = line.startswith("|")
    return [table for table in tables if table.rows]


class _Tee(io.TextIOBase):
    """Writes to a stream and keeps a copy."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.copy = io.StringIO()

    def write(self, text: str) -> int:
        self._stream.write(text)
        return self.copy.write(text)

    def flush(self) -> None:
        self._stream.flush()


@contextlib.contextmanager
def recording(path: Path | None, command: str) -> Iterator[None]:
    """Adds the tables that are printed in the block to the figures of the file, unless `path` is None.

    After an error the last one is left out, because it may not be complete.
    """
    if path is None:
        yield
        return
    tee, is_complete = _Tee(sys.stdout), False
    try:
        with contextlib.redirect_stdout(tee):
            yield
        is_complete = True
    finally:
        tables = parse(tee.copy.getvalue(), command)
        figures = Figures.load(path)
        figures.add(tables if is_complete else tables[:-1])
        figures.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("printed", type=Path, help="a file with what the benchmark printed")
    parser.add_argument("--command", required=True, help="the command that printed it")
    parser.add_argument("--json", type=Path, default=FIGURES, help=f"the file of figures ({FIGURES.name})")
    options = parser.parse_args()
    figures = Figures.load(options.json)
    figures.add(parse(options.printed.read_text(), options.command))
    figures.save(options.json)


if __name__ == "__main__":
    main()
