"""A PostgreSQL of one's own: made, started and ended here, reached through a socket in a private folder."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from service.launcher.embedded import EmbeddedError, binaries, stale
from service.launcher.embedded.server import Server
from service.launcher.process import Program, User, run_as

_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "jit": "off",  # every statement here is short: compiling one takes longer than running it
    # Not in /dev/shm, which is tiny in a container and which systemd empties when a user logs out.
    "dynamic_shared_memory_type": "mmap",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
}


def server_user() -> User | None:
    """The account that the server runs as, where this process is root: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        raise EmbeddedError(
            "PostgreSQL does not run as root and this machine has no user `nobody` to run it:"
            " start Daguerre as an ordinary user"
        ) from None
    return User(entry.pw_uid, entry.pw_gid, entry.pw_name)


class Postgres(Server):
    """One cluster with a database and a superuser named `daguerre`.

    `folder` is the server's alone: it holds the cluster, and the socket and the log unless they are given their
    own places. `settings` are added to the server's. As root the server runs as `nobody`, who must be able to
    reach `folder`; the folder itself becomes his.
    """

    def __init__(
        self,
        folder: Path,
        *,
        settings: Mapping[str, str] | None = None,
        socket_folder: Path | None = None,
        log: Path | None = None,
    ) -> None:
        self.folder = folder
        self.cluster = folder / "cluster"
        self.socket_folder = socket_folder or folder
        self.log = log or folder / "postgres.log"
        self.settings = {**_SETTINGS, **(settings or {})}
        self.user = server_user()

    @property
    def dsn(self) -> str:
        return self.dsn_of("daguerre")

    def dsn_of(self, database: str) -> str:
        return f"postgresql://daguerre@/{database}?host={self.socket_folder}"

    def program(self) -> Program:
        """The server as a program to supervise; makes the cluster where there is none."""
        for folder in {self.folder, self.socket_folder}:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.user and folder.stat().st_uid != self.user.uid:
                os.chown(folder, self.user.uid, self.user.gid)
        programs = binaries.postgres_bin(self.folder, self.user)
        self._check_version()
        if not self.cluster.is_dir():
            self._make_cluster(programs)
        settings = {**self.settings, "unix_socket_directories": str(self.socket_folder)}
        return Program(
            name="PostgreSQL",
            argv=[
                *(programs / "postgres", "-D", self.cluster),
                *(word for name, value in settings.items() for word in ("-c", f"{name}={value}")),
            ],
            user=self.user,
            log=self.log,
            stop_signal=signal.SIGINT,  # "fast": open sessions are cut off, what is committed is written
            death_signal=signal.SIGINT,
            hard_signal=signal.SIGQUIT,  # "immediate": the next start recovers; -9 would leave its children
            prepare=self._end_stale,
            ready=self._is_ready,
        )

    def _check_version(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            made_by = (self.cluster / "PG_VERSION").read_text().strip()
            brought = binaries.postgres_version().partition(".")[0]
            if made_by != brought:
                raise EmbeddedError(
                    f"The database in {self.cluster} is of PostgreSQL {made_by} and this Daguerre brings"
                    f" {brought}: dump it with the older Daguerre and load it into a new folder"
                )

    def _make_cluster(self, programs: Path) -> None:
        """Made under another name first, so that an interrupted one is not taken for whole."""
        partial = self.folder / "cluster.partial"
        shutil.rmtree(partial, ignore_errors=True)
        options = ["-A", "trust", "-E", "UTF8", "--locale=C", "--no-instructions", "-U", "daguerre"]
        if self.settings.get("fsync") == "off":
            options.append("--no-sync")
        self._run([programs / "initdb", *options, "-D", partial])
        single: list[str | Path] = [
            programs / "postgres",
            "--single",
            "-D",
            partial,
            "-c",
            "log_checkpoints=off",
            "postgres",
        ]
        self._run(single, "CREATE DATABASE daguerre;\n")
        partial.rename(self.cluster)

    def _run(self, argv: Sequence[str | Path], text: str = "") -> None:
        done = run_as(self.user, argv, text)
        said = done.stderr.splitlines()
        errors = [line for line in said if "error:" in line or "FATAL:" in line or "ERROR:" in line]
        if done.returncode != 0 or errors:
            reason = [*errors, *said[-1:], f"exit code {done.returncode}"][0]
            raise EmbeddedError(f"PostgreSQL could not make its cluster in {self.folder}: {reason}")

    def _end_stale(self) -> None:
        """A server that outlived its parent is ended; one that died left files that would stop the next."""
        lock = self.cluster / "postmaster.pid"
        pid = stale.read_pid(lock)
        if pid is not None and stale.is_running(pid, self.cluster):
            stale.end(pid, self.cluster, [signal.SIGINT, signal.SIGQUIT])
        elif pid is not None and stale.exists(pid):
            # Some other process got the number after a reboot. PostgreSQL would take it for a server; it still
            # has to read the rest of the file, which tells it of children that outlived theirs.
            lines = lock.read_text().splitlines(keepends=True)
            lock.write_text("".join(["2147483647\n", *lines[1:]]))
        for left in self.socket_folder.glob(".s.PGSQL.*"):
            left.unlink(missing_ok=True)

    def _is_ready(self, pid: int) -> bool:
        """What `pg_ctl --wait` looks at: the server's own pid file, whose 8th line is its state."""
        try:
            lines = (self.cluster / "postmaster.pid").read_text().split("\n")
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"
