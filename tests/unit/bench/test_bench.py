from __future__ import annotations

import pytest

from bench.__main__ import ROWS, read_options


def test_all_rows_run_by_default() -> None:
    assert read_options([]).rows == list(ROWS)
    assert read_options(["queue", "--rounds", "1"]).rows == ["queue"]


def test_unknown_row_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_options(["uplaods"])
    assert "unknown row uplaods; the rows are uploads, " in capsys.readouterr().err
