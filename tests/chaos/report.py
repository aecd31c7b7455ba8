"""Prints a table of what clients observed, after the tests."""

from __future__ import annotations

import pytest

_COLUMNS = ("done", "503", "no response", "slowest ms", "served after ms", "consistent after ms")


def print_faults(terminalreporter: pytest.TerminalReporter) -> None:
    rows = [
        (report.nodeid.partition("::test_")[2].replace("_", " "), dict(report.user_properties))
        for report in terminalreporter.getreports("passed")
        if dict(report.user_properties).keys() >= set(_COLUMNS)
    ]
    if rows:
        terminalreporter.section("What clients observed during each fault")
        terminalreporter.write_line(f"| fault | {' | '.join(_COLUMNS)} |")
        terminalreporter.write_line("| --- |" + " --- |" * len(_COLUMNS))
        for fault, values in sorted(rows):
            terminalreporter.write_line(f"| {fault} | {' | '.join(str(values[column]) for column in _COLUMNS)} |")
