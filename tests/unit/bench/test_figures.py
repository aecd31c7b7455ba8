from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.figures import FigureMissing, Figures, parse, parts, recording

PRINTED = """2026-11-30, 2 cores of AMD EPYC, 24 GB, Linux 6.18

Metadata of one of 200 images

| service | requests/s, median (min to max) | CPU ms per request |
|---|---|---|
| Daguerre | 10094 (9725 to 10150) | api 0.10, postgres 0.01, object store 0.20 |

Daguerre / bare aiohttp: 0.71 (0.71 to 0.82), target 0.94: missed by 24%

Peak of the API process, MB: 1,006.48, target at most 150: missed

Workers: {jobs} jobs

| workers | jobs/s |
|---|---|
| 1 | 3847 |

Interrupted

| workers | jobs/s |
|---|---|
"""


def test_tables_are_parsed_with_the_lines_below_them() -> None:
    reads, workers = parse(PRINTED, "./run bench")
    assert (reads.title, reads.date, reads.command) == ("Metadata of one of 200 images", "2026-11-30", "./run bench")
    assert reads.machine == "2 cores of AMD EPYC, 24 GB, Linux 6.18"
    assert reads.value("Daguerre", "requests/s, median (min to max)") == 10094
    assert reads.line("Peak of the API process, MB") == 1006.48
    assert workers.rows == [["1", "3847"]]
    assert workers.title not in reads.lines


def test_missing_figures_are_named() -> None:
    [reads, _] = parse(PRINTED, "./run bench")
    with pytest.raises(FigureMissing, match="there is no CPU ms per request of sharp"):
        reads.value("sharp", "CPU ms per request")
    with pytest.raises(FigureMissing, match="0 tables are named like 'Uploads' … ''"):
        Figures().table("Uploads")


def test_parts_of_a_cell() -> None:
    assert parts("api 0.10, object store 0.20") == {"api": 0.1, "object store": 0.2}


def test_recording_replaces_tables_of_the_same_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    for rate in ("10094", "20000"):
        with recording(path, "./run bench reads"):
            sys.stdout.write(PRINTED.replace("10094", rate).replace("{jobs}", rate))
    assert "| Daguerre | 10094 (" in capsys.readouterr().out
    figures = Figures.load(path)
    assert len(figures.tables) == 2
    assert figures.table("Metadata").value("Daguerre", "requests/s, median (min to max)") == 20000
