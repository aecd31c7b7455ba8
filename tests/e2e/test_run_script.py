"""`./run` until the installation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Returns a checkout with a space in its path and without .venv."""
    path = tmp_path / "check out"
    path.mkdir()
    for name in ("run", "pyproject.toml"):
        shutil.copy(ROOT / name, path / name)
    return path


def run(checkout: Path, *words: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHON": python}
    return subprocess.run(
        [checkout / "run", *words], capture_output=True, text=True, cwd="/", env=env, check=False, timeout=20
    )


def fake_python(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_usage_is_shown_without_a_command(checkout: Path) -> None:
    result = run(checkout)
    assert (result.returncode, result.stderr) == (0, "")
    assert "./run up" in result.stdout
    assert "./run test" in result.stdout


def test_old_python_is_refused(checkout: Path) -> None:
    old = fake_python(checkout / "old", "case $2 in *platform*) echo 3.9.2 ;; *) exit 1 ;; esac")
    result = run(checkout, "up", python=old)
    assert result.returncode == 1
    assert result.stderr.startswith(f"run: Python 3.11 or newer is needed, and {old} is 3.9.2:")


def test_missing_python_is_reported(checkout: Path) -> None:
    result = run(checkout, "up", python="no-such-python")
    assert result.returncode == 1
    assert "no-such-python was not found" in result.stderr


def test_missing_venv_module_is_reported(checkout: Path) -> None:
    script = f"case $2 in *ensurepip*) exit 1 ;; *) exec '{sys.executable}' \"$@\" ;; esac"
    incomplete = fake_python(checkout / "incomplete", script)
    result = run(checkout, "up", python=incomplete)
    assert result.returncode == 1
    assert "apt install python3-venv" in result.stderr
    assert not (checkout / ".venv").exists()


def test_installation_is_reused(checkout: Path) -> None:
    """Its stamp has the path, pyproject.toml and the version of Python. A change of any means a new installation."""
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    version = "{}.{}".format(*sys.version_info[:2])
    fake_python(python, f'case $1 in -c) echo {version} ;; *) echo "$DAGUERRE_COMMAND $*" ;; esac')
    project = checkout / "pyproject.toml"
    checksum = subprocess.run(["cksum"], input=project.read_bytes(), capture_output=True, check=True).stdout.decode()
    stamp = checkout / ".venv" / "installed"
    stamp.write_text(f"{checkout} | {checksum.strip()} | Python {version}\nembedded,dev\n")
    result = run(checkout, "keys", "list", "a b", python="no-such-python")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "./run -P -m service.cli keys list a b\n"
    project.write_text("# changed\n")
    assert "no-such-python was not found" in run(checkout, "up", python="no-such-python").stderr
