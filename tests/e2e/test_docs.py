"""The documentation matches the source: settings, routes, metrics, commands, links and anchors."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from service.api.app import create_app
from service.cli import cli
from service.cli.settings import write_markdown
from service.config.settings import Settings
from service.launcher.embedded import first_key
from service.telemetry.metrics import metrics
from tests.support.commands import daguerre

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "bench/README.md", *sorted((ROOT / "docs").glob("*.md"))]
API, CONFIGURATION, OPERATIONS = (
    (ROOT / "docs" / f"{name}.md").read_text() for name in ("api", "configuration", "operations")
)
MAX_README_LINES = 200


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= MAX_README_LINES


def test_settings_are_documented() -> None:
    assert CONFIGURATION.endswith(write_markdown())


def test_routes_are_documented() -> None:
    routes = {
        (route.method, route.resource.canonical)
        for route in create_app(Settings()).router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    documented = set(re.findall(r"^\| `([A-Z]+) (/\S*)` \|", API, re.MULTILINE))
    assert documented == routes


def test_metrics_are_documented() -> None:
    documented = re.findall(r"^\| `(daguerre_\w+)` \| (.*?)\| (.+) \|$", OPERATIONS, re.MULTILINE)
    declared = {
        (family.name + ("_total" if family.type == "counter" else ""), family.documentation)
        for family in metrics.describe()
    }
    assert {(name, meaning) for name, _, meaning in documented} == declared
    assert len(documented) == len(declared)


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_link_targets_exist(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]+))?\)", _without_code(page.read_text())):
        if target.startswith("https://"):
            continue
        linked = (page.parent / target).resolve() if target else page
        assert linked.exists(), target
        if anchor:
            assert anchor in _anchors(linked), f"{target}#{anchor}"


def _without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def _anchors(page: Path) -> set[str]:
    """Returns the anchors of headings on GitHub: lower case, without punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)$", _without_code(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_account_commands_are_documented() -> None:
    assert "./run sign default '" in OPERATIONS
    for group in ("accounts", "keys", "signing-keys", "presets"):
        command = cli.commands[group]
        assert isinstance(command, click.Group)
        for name in command.commands:
            assert f"./run {group} {name}" in OPERATIONS


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/operations.md", "docs/renditions.md", "docs/signed-urls.md"])
async def test_documented_commands_work(database_url: str, tmp_path: Path, page: str) -> None:
    """Runs the commands of a page in their order, also those in prose, with the account that `up` creates."""
    await first_key.prepare(database_url, tmp_path)
    groups = "accounts|keys|signing-keys|presets|sign"
    pattern = rf"(?:^\./run (?P<line>(?:{groups}) [^#\n]+))|(?:`\./run (?P<prose>(?:{groups})\s[^`]+)`)"
    commands = [
        shlex.split(match["line"] or match["prose"])
        for match in re.finditer(pattern, (ROOT / page).read_text(), re.MULTILINE)
    ]
    assert commands
    for command in commands:
        result = daguerre(*command, database_url=database_url)
        assert result.returncode == 0, (command, result.stderr)
