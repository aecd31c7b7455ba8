"""The data folder of `daguerre up`: its layout, and whether it can be used."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from service.config.settings import default_data_folder
from service.launcher.embedded import EmbeddedError, instance
from service.launcher.process import User, name_of, run_as

_HARMLESS = {"lost+found", "metrics", "storage"}  # names that a new data folder may contain already
RESTORING = "restore-unfinished"  # exists while a backup is restored
_SOCKET_LIMIT_BYTES = 100  # the kernel's limit is 107 on Linux, 103 on macOS


@dataclass(frozen=True, slots=True)
class DataFolder:
    """A data folder whose lock this process holds."""

    path: Path
    run: Path
    unclean: bool  # the last `up` was killed, and its processes may still be stopping

    @property
    def postgres(self) -> Path:
        return self.path / "postgres"

    @property
    def valkey(self) -> Path:
        return self.path / "valkey"

    @property
    def object_store(self) -> Path:
        return self.path / "object-store"

    @property
    def object_store_mark(self) -> Path:
        """The path of a file that exists if the images are in the object store."""
        return self.object_store / "in-use"

    @property
    def logs(self) -> Path:
        return self.path / "log"

    @property
    def main_log(self) -> Path:
        """The log of the API, the workers and `up` itself. Each server has its own log beside it."""
        return self.logs / "daguerre.log"


@contextlib.contextmanager
def claim(path: Path, server_user: User | None) -> Iterator[DataFolder]:
    """Creates the folder if it is missing and holds its lock. Raises EmbeddedError if it cannot be used.

    `server_user` must be able to enter it, besides this process's user. Nothing outside the folder is changed.
    """
    path = path.absolute()
    try:
        _check(path, server_user)
        _create(path, server_user)
        with instance.lock(path):
            for name in ("log", "storage", "valkey"):
                (path / name).mkdir(mode=0o700, exist_ok=True)
            unclean = instance.state_file(path).exists()
            instance.state_file(path).unlink(missing_ok=True)
            run = _run_folder(path, server_user)
            yield DataFolder(path, run, unclean)
            instance.state_file(path).unlink(missing_ok=True)
            if not run.is_relative_to(path):
                shutil.rmtree(run, ignore_errors=True)
    except OSError as error:
        if error.filename is None or not Path(str(error.filename)).is_relative_to(path):
            raise
        raise EmbeddedError(f"{path} cannot be used: {_explain(error)}") from error


@contextlib.contextmanager
def claim_new(path: Path, server_user: User | None) -> Iterator[DataFolder]:
    """Claims an empty folder, to restore a backup into. It is emptied again if the block fails."""
    path = path.absolute()
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    _refuse_unfinished(path, names)
    if others := sorted(names - {"lost+found", instance.LOCK}):
        raise EmbeddedError(f"{path} is not empty ({others[0]}): choose a new or an empty folder with --data")
    with claim(path, server_user) as claimed:
        if claimed.postgres.exists():  # created by another restore meanwhile
            raise EmbeddedError(f"{path} holds a database already: choose a new or an empty folder with --data")
        (path / RESTORING).touch(mode=0o600)
        try:
            yield claimed
        except BaseException:
            for entry in path.iterdir():
                if entry.name not in {"lost+found", instance.LOCK}:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            raise
        (path / RESTORING).unlink()


def _check(path: Path, server_user: User | None) -> None:
    if path.exists() and not path.is_dir():
        raise EmbeddedError(f"{path} is not a folder: choose another one with --data")
    above = next(parent for parent in path.parents if parent.exists())
    if not above.is_dir():
        raise EmbeddedError(f"{path} cannot be created: {above} is not a folder. Choose another one with --data")
    if server_user and not _can_enter(above, server_user):
        closed = next((parent for parent in [*reversed(above.parents), above] if _is_closed(parent)), above)
        raise EmbeddedError(
            f"{path} cannot hold the database: for root, PostgreSQL runs as `{server_user.name}`, who cannot enter"
            f" {closed} (mode {stat.S_IMODE(closed.stat().st_mode):o}): choose a folder elsewhere with --data,"
            f" e.g. {default_data_folder()}"
        )
    if path.exists():
        _check_contents(path)


def _check_contents(path: Path) -> None:
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise EmbeddedError(f"{path} is not writable for {name_of(os.geteuid())}: choose another folder with --data")
    names = sorted(entry.name for entry in path.iterdir())
    _refuse_unfinished(path, names)
    if instance.LOCK in names:
        if (path / instance.LOCK).stat().st_uid != os.geteuid():
            raise EmbeddedError(
                f"{path} belongs to {name_of((path / instance.LOCK).stat().st_uid)}: start Daguerre as that user"
            )
    elif foreign := [name for name in names if name not in _HARMLESS]:
        some = ", ".join(foreign[:3]) + (", …" if len(foreign) > 3 else "")
        raise EmbeddedError(f"{path} holds other files ({some}): choose a new or an empty folder with --data")


def _refuse_unfinished(path: Path, names: Collection[str]) -> None:
    if RESTORING in names:
        raise EmbeddedError(f"The restore of a backup in {path} was interrupted: remove that folder, and restore again")


def _create(path: Path, server_user: User | None) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if server_user and not _can_enter(path, server_user):
        path.chmod(stat.S_IMODE(path.stat().st_mode) | 0o011)  # enter, not list
    if server_user and not _can_enter(path, server_user):  # a parent that mkdir created, under a strict umask
        raise EmbeddedError(
            f"{path} cannot hold the database: PostgreSQL runs as `{server_user.name}`, who cannot enter it:"
            " open its parent folders to other users (chmod o+x)"
        )


def _run_folder(path: Path, server_user: User | None) -> Path:
    """Returns the folder for the sockets.

    It is in the data folder, unless its path is too long for a socket or would need quoting in a URL.
    """
    mode = 0o711 if server_user else 0o700
    run = path / "run"
    longest = os.fsencode(run / "postgres" / ".s.PGSQL.5432")
    if len(longest) <= _SOCKET_LIMIT_BYTES and re.fullmatch(rb"[A-Za-z0-9/._-]+", longest):
        run.mkdir(mode=mode, exist_ok=True)
        return run
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
    run = Path(f"/tmp/daguerre-{os.geteuid()}-{digest}")  # noqa: S108  its owner is checked
    with contextlib.suppress(FileExistsError):
        run.mkdir(mode=mode)
    status = run.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise EmbeddedError(f"{run}, the folder for sockets, is another user's: remove it or use a shorter --data")
    run.chmod(mode)
    return run


def _can_enter(path: Path, user: User) -> bool:
    """Tries to enter the folder as that user, because mode bits do not show ACLs."""
    return run_as(user, ["/bin/sh", "-c", 'cd -- "$1"', "sh", str(path)]).returncode == 0


def _is_closed(path: Path) -> bool:
    return not path.stat().st_mode & stat.S_IXOTH


def _explain(error: OSError) -> str:
    if error.errno in {errno.EACCES, errno.EPERM}:
        return f"{name_of(os.geteuid())} may not write to {error.filename}"
    return f"{(error.strerror or str(error)).lower()} ({error.filename})"
