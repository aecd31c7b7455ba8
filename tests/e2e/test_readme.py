"""The README against the source: settings, routes, metrics and commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from service.api.app import create_app
from service.cli import cli
from service.config.settings import Settings, SettingsError, load
from service.config.values import parse_size
from service.launcher.embedded import first_key
from service.telemetry.metrics import metrics
from tests.support.commands import daguerre

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
WRITTEN_OUT = {
    "data",
    "storage",
    "max_upload",
    "fetch_allow",
    "metrics_dir",
    "rate_limit",
    "renditions_dir",
    "renditions_size",
    "renditions_memory",
    "rendition_widths",
    "scrub",
    "trusted_proxies",
    "x_accel_redirect",
}


@pytest.mark.parametrize("name", Settings.model_fields)
def test_settings_are_documented(name: str) -> None:
    field = Settings.model_fields[name]
    row = re.search(rf"^\| `DAGUERRE_{name.upper()}` \| (.+?) \| (.+) \|$", README, re.MULTILINE)
    assert row is not None
    assert row[2] == field.description
    if name not in WRITTEN_OUT:
        assert row[1] == f"`{field.default}`"


def test_the_table_has_no_other_settings() -> None:
    assert len(re.findall(r"^\| `DAGUERRE_", README, re.MULTILINE)) == len(Settings.model_fields)


def test_routes_are_documented() -> None:
    routes = {
        (route.method, route.resource.canonical)
        for route in create_app(Settings()).router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    listed = set(re.findall(r"^\| `([A-Z]+) (/\S*)` \|", README, re.MULTILINE))
    assert listed == routes


def test_metrics_are_documented() -> None:
    listed = re.findall(r"^\| `(daguerre_\w+)` \| (.*?)\| (.+) \|$", README, re.MULTILINE)
    shown = {
        (family.name + ("_total" if family.type == "counter" else ""), family.documentation)
        for family in metrics.describe()
    }
    assert {(name, meaning) for name, _, meaning in listed} == shown
    assert len(listed) == len(shown)


def test_linked_files_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_account_commands_are_documented() -> None:
    assert "./run sign default '" in README
    for group in ("accounts", "keys", "signing-keys", "presets"):
        command = cli.commands[group]
        assert isinstance(command, click.Group)
        for name in command.commands:
            assert f"./run {group} {name}" in README


@pytest.mark.parametrize("page", ["README.md", "docs/renditions.md", "docs/signed-urls.md"])
async def test_documented_commands_work(database_url: str, tmp_path: Path, page: str) -> None:
    """They name an account that `up` made, and come in an order that works; in prose, too."""
    await first_key.prepare(database_url, tmp_path)
    groups = "accounts|keys|signing-keys|presets|sign"
    shown = rf"(?:^\./run (?P<line>(?:{groups}) [^#\n]+))|(?:`\./run (?P<prose>(?:{groups})\s[^`]+)`)"
    commands = [
        shlex.split(match["line"] or match["prose"])
        for match in re.finditer(shown, (ROOT / page).read_text(), re.MULTILINE)
    ]
    assert commands
    for command in commands:
        done = daguerre(*command, database_url=database_url)
        assert done.returncode == 0, (command, done.stderr)


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
