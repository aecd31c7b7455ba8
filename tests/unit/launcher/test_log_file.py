"""The log file of `daguerre up`, and what its terminal shows of it."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.launcher.embedded import terminal as console
from service.launcher.embedded.log_file import LogFile
from tests.support.waiting import wait_for


class Screen:
    """The two ends of a pipe."""

    def __init__(self) -> None:
        self.out, self.descriptor = os.pipe()
        os.set_blocking(self.out, False)
        self.text = ""

    def read(self) -> str:
        try:
            while piece := os.read(self.out, 65536):
                self.text += piece.decode()
        except BlockingIOError:
            pass
        return self.text


@pytest.fixture
def screen() -> Iterator[Screen]:
    screen = Screen()
    yield screen
    os.close(screen.out)
    os.close(screen.descriptor)


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_lines_of_processes_are_shown_once(tmp_path: Path, screen: Screen) -> None:
    log = tmp_path / "daguerre.log"
    log.write_text("of the last time\n")
    with LogFile(log, screen.descriptor, as_json=False):
        append(log, "one\nhalf")
        wait_for(lambda: "one" in screen.read())
        append(log, " a line\nlast\n")
    assert screen.read() == "one\nhalf a line\nlast\n"
    assert log.read_text() == "of the last time\none\nhalf a line\nlast\n"


def test_trimmed_log_is_followed(tmp_path: Path, screen: Screen) -> None:
    log = tmp_path / "daguerre.log"
    with LogFile(log, screen.descriptor, as_json=False):
        append(log, "a long line before it is trimmed\n")
        wait_for(lambda: "trimmed" in screen.read())
        os.truncate(log, 0)
        append(log, "after\n")
        wait_for(lambda: "after" in screen.read())


@pytest.mark.parametrize("as_json", [False, True])
def test_own_lines_are_not_copied(tmp_path: Path, screen: Screen, *, as_json: bool) -> None:
    """The screen has it already."""
    log = tmp_path / "daguerre.log"
    with LogFile(log, screen.descriptor, as_json=as_json) as journal:
        journal.write(
            "program.restarted", "PostgreSQL (process 12) was killed by signal 9: starting it again " + "x" * 99
        )
        append(log, "another\n")
        wait_for(lambda: "another" in screen.read())
    assert screen.read() == "another\n"
    line = log.read_text().splitlines()[0]
    if as_json:
        assert json.loads(line)["event"] == "program.restarted"
    else:
        assert "program.restarted WARNING" in line
        assert max(map(len, log.read_text().splitlines())) <= 100


def test_closed_terminal_ends_nothing(tmp_path: Path) -> None:
    out, descriptor = os.pipe()
    os.close(out)
    log = tmp_path / "daguerre.log"
    with LogFile(log, descriptor, as_json=False) as journal:
        append(log, "nobody sees it\n")
        journal.write("program.restarted", "nor this")
    os.close(descriptor)
    assert "nobody sees it" in log.read_text()
    assert "nor this" in log.read_text()


@pytest.mark.slow
def test_paused_terminal_blocks_nothing(tmp_path: Path, screen: Screen) -> None:
    """The pipe is full, as the terminal is after Ctrl-S."""
    log = tmp_path / "daguerre.log"
    with LogFile(log, screen.descriptor, as_json=False) as journal:
        append(log, ("x" * 99 + "\n") * 2000)
        journal.write("program.restarted", "kept all the same")
        assert "kept all the same" in log.read_text()


def test_notes_fit_100_columns() -> None:
    stream = io.StringIO()
    screen = console.Terminal(stream)
    screen.note("Not ready yet: /readyz answers 503 " + '{"status": "unavailable", "checks": {"worker": "ok"}} ' * 4)
    screen.note("")
    lines = stream.getvalue().splitlines()
    assert len(lines) > 2
    assert max(map(len, lines)) <= 100
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3}Z ! Not ready yet: .*", lines[0])
