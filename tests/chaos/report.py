"""The table of what was seen, after the tests."""

from __future__ import annotations

import pytest

_COLUMNS = ("done", "503", "unanswered", "slowest ms", "served again after ms", "whole after ms")


def show_faults(terminalreporter: pytest.TerminalReporter) -> None:
    rows = [
        (report.nodeid.partition("::test_")[2].replace("_", " "), dict(report.user_properties))
        for report in terminalreporter.getreports("passed")
        if dict(report.user_properties).keys() >= set(_COLUMNS)
    ]
    if rows:
        terminalreporter.section("What clients saw of each fault")
        terminalreporter.write_line(f"| fault | {' | '.join(_COLUMNS)} |")
        terminalreporter.write_line("| --- |" + " --- |" * len(_COLUMNS))
        for fault, seen in sorted(rows):
            terminalreporter.write_line(f"| {fault} | {' | '.join(str(seen[column]) for column in _COLUMNS)} |")
