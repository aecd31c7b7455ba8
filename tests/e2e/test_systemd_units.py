"""deploy/*.service: systemd accepts them, and they allow what Daguerre needs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from service.cli import cli
from service.config.settings import Settings

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = {path.stem: path.read_text() for path in sorted(DEPLOY.glob("*.service"))}
# The calls for Landlock and seccomp, with which decoders enter their sandbox, are in no group of systemd 252.
SANDBOX_CALLS = "seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self"

every_unit = pytest.mark.parametrize("text", UNITS.values(), ids=UNITS)


def read(text: str, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)


@pytest.mark.needs("systemd-analyze")
def test_systemd_understands_every_line(tmp_path: Path) -> None:
    for name, text in UNITS.items():
        # The programs are not installed, and verify checks that they exist.
        (tmp_path / f"{name}.service").write_text(re.sub(r"=/opt/daguerre/bin/daguerre", "=/bin/true", text))
    result = subprocess.run(
        ["systemd-analyze", "verify", *sorted(tmp_path.iterdir())], capture_output=True, text=True, check=False
    )
    messages = [line for line in result.stderr.splitlines() if "daguerre" in line]
    assert (result.returncode, messages) == (0, [])


@every_unit
def test_unit_runs_an_existing_command(text: str) -> None:
    for command in read(text, "ExecStart(?:Pre)?"):
        [program, name] = command.split()
        assert program == "/opt/daguerre/bin/daguerre"
        assert name in cli.commands


@every_unit
def test_stop_timeout_exceeds_the_drain(text: str) -> None:
    """Also, the signal is sent to the main process only, because it must not end a decoder."""
    [seconds] = read(text, "TimeoutStopSec")
    assert int(seconds) > Settings.model_fields["drain_s"].default
    assert read(text, "KillMode") == ["mixed"]


@every_unit
def test_unit_names_existing_settings(text: str) -> None:
    for name in re.findall(r"DAGUERRE_([A-Z_]+)", text):
        assert name.lower() in Settings.model_fields


def test_unit_allows_the_sandbox() -> None:
    assert read(UNITS["daguerre-worker"], "SystemCallFilter") == ["@system-service", SANDBOX_CALLS]


def test_units_share_the_metrics_folder() -> None:
    """It is in /dev/shm: RemoveIPC would remove the files of the other unit, and PrivateIPC would hide them."""
    for text in UNITS.values():
        assert read(text, "(?:RemoveIPC|PrivateIPC|DynamicUser)") == []
        assert read(text, "User") == ["daguerre"]
