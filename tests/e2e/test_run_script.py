"""`./run`, up to the installation."""

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
    """With a space in its path, and no .venv."""
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
    done = run(checkout)
    assert (done.returncode, done.stderr) == (0, "")
    assert "./run up" in done.stdout
    assert "./run test" in done.stdout


def test_old_python_is_refused(checkout: Path) -> None:
    old = fake_python(checkout / "old", "case $2 in *platform*) echo 3.9.2 ;; *) exit 1 ;; esac")
    done = run(checkout, "up", python=old)
    assert done.returncode == 1
    assert done.stderr.startswith(f"run: Python 3.11 or newer is needed, and {old} is 3.9.2:")


def test_missing_python_is_reported(checkout: Path) -> None:
    done = run(checkout, "up", python="no-such-python")
    assert done.returncode == 1
    assert "no-such-python was not found" in done.stderr


def test_missing_venv_module_is_reported(checkout: Path) -> None:
    script = f"case $2 in *ensurepip*) exit 1 ;; *) exec '{sys.executable}' \"$@\" ;; esac"
    lame = fake_python(checkout / "lame", script)
    done = run(checkout, "up", python=lame)
    assert done.returncode == 1
    assert "apt install python3-venv" in done.stderr
    assert not (checkout / ".venv").exists()


def test_installation_is_used_again(checkout: Path) -> None:
    """Its stamp holds the place, the pyproject.toml and the Python; any other of these means another installation."""
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    version = "{}.{}".format(*sys.version_info[:2])
    fake_python(python, f'case $1 in -c) echo {version} ;; *) echo "$DAGUERRE_COMMAND $*" ;; esac')
    project = checkout / "pyproject.toml"
    summed = subprocess.run(["cksum"], input=project.read_bytes(), capture_output=True, check=True).stdout.decode()
    stamp = checkout / ".venv" / "installed"
    stamp.write_text(f"{checkout} | {summed.strip()} | Python {version}\nembedded,dev\n")
    done = run(checkout, "keys", "list", "a b", python="no-such-python")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "./run -P -m service.cli keys list a b\n"
    project.write_text("# changed\n")
    assert "no-such-python was not found" in run(checkout, "up", python="no-such-python").stderr
