"""Settings from the environment and from options."""

from __future__ import annotations

import pytest

from service.config.settings import SettingsError, load
from service.config.values import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("1000", 1000), ("50MB", 50 << 20), ("2GB", 2 << 30), ("1.5k", 1536), ("2 GiB", 2 << 30), ("1TB", 1 << 40)],
)
def test_sizes_are_bytes_or_powers_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "fifty", "-1", "5XB", "MB", "1e3"])
def test_bad_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


def test_bad_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGUERRE_MAX_UPLOAD", "plenty")
    with pytest.raises(SettingsError, match=r"DAGUERRE_MAX_UPLOAD: .*'plenty' is not a size"):
        load()


def test_option_overrides_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGUERRE_PORT", "1234")
    assert load().port == 1234
    assert load(port=4321).port == 4321
    assert load(port=None).port == 1234
