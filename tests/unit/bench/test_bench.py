from __future__ import annotations

import pytest

from bench.__main__ import ROWS, read_options


def test_every_row_is_meant_where_none_is_named() -> None:
    assert read_options([]).rows == list(ROWS)
    assert read_options(["queue", "--rounds", "1"]).rows == ["queue"]


def test_a_row_that_does_not_exist_is_told_with_those_that_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_options(["uplaods"])
    assert "no row is called uplaods; there are uploads, " in capsys.readouterr().err
