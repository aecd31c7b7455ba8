"""An embedded PostgreSQL: one cluster, which is reached through a socket in a private folder."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from service.launcher.embedded import EmbeddedError, binaries
from service.launcher.embedded.server import Server, end_server, is_server_of, process_exists, read_pid
from service.launcher.process import Program, User, run_as

_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "jit": "off",  # all statements are short: compiling one takes longer than running it
    # Not /dev/shm: it is tiny in containers, and systemd empties it when a user logs out.
    "dynamic_shared_memory_type": "mmap",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
}


def server_user() -> User | None:
    """Returns the user that the server runs as, or None for this process's own. PostgreSQL refuses to run as root.

    Raises EmbeddedError if this process is root and there is no such user.
    """
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        raise EmbeddedError(
            "PostgreSQL does not run as root, and this machine has no user `nobody` to run it as:"
            " start Daguerre as an ordinary user"
        ) from None
    return User(entry.pw_uid, entry.pw_gid, entry.pw_name)


class Postgres(Server):
    """One cluster with a database and a superuser named `daguerre`.

    `folder` is the server's own and holds the cluster; also the socket and the log unless their paths are given.
    `settings` are added to the defaults. If this process is root, the server runs as `nobody`, who must be able to
    reach `folder` and becomes its owner.
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
        """Returns the server as a program to supervise. Creates the cluster if it is missing."""
        for folder in {self.folder, self.socket_folder}:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.user and folder.stat().st_uid != self.user.uid:
                os.chown(folder, self.user.uid, self.user.gid)
        programs = binaries.postgres_bin(self.folder, self.user)
        self._check_version()
        if not self.cluster.is_dir():
            self._create_cluster(programs)
        settings = {**self.settings, "unix_socket_directories": str(self.socket_folder)}
        return Program(
            name="PostgreSQL",
            argv=[
                *(programs / "postgres", "-D", self.cluster),
                *(word for name, value in settings.items() for word in ("-c", f"{name}={value}")),
            ],
            user=self.user,
            log=self.log,
            stop_signal=signal.SIGINT,  # "fast": it closes open sessions and writes what is committed
            death_signal=signal.SIGINT,
            hard_signal=signal.SIGQUIT,  # "immediate": the next start recovers; SIGKILL would leave its children behind
            prepare=self._end_stale,
            ready=self._is_ready,
        )

    def _check_version(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            created_by = (self.cluster / "PG_VERSION").read_text().strip()
            wheel = binaries.postgres_version().partition(".")[0]
            if created_by != wheel:
                raise EmbeddedError(
                    f"The database in {self.cluster} was created by PostgreSQL {created_by}, and this Daguerre"
                    f" includes {wheel}: back it up with the older Daguerre and restore it into a new folder"
                )

    def _create_cluster(self, programs: Path) -> None:
        """Creates the cluster under another name first, so that an interrupted one is not mistaken for a complete
        one.
        """
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
        result = run_as(self.user, argv, text)
        output = result.stderr.splitlines()
        errors = [line for line in output if "error:" in line or "FATAL:" in line or "ERROR:" in line]
        if result.returncode != 0 or errors:
            reason = [*errors, *output[-1:], f"exit code {result.returncode}"][0]
            raise EmbeddedError(f"PostgreSQL could not create its cluster in {self.folder}: {reason}")

    def _end_stale(self) -> None:
        """Stops a server that outlived its parent. Removes the files of a dead one, which would block the next
        start.
        """
        lock = self.cluster / "postmaster.pid"
        pid = read_pid(lock)
        if pid is not None and is_server_of(pid, self.cluster):
            end_server(pid, self.cluster, [signal.SIGINT, signal.SIGQUIT])
        elif pid is not None and process_exists(pid):
            # Another process got the number after a reboot, and PostgreSQL would mistake it for a server. The rest of
            # the file stays: with it PostgreSQL finds children that outlived their server.
            lines = lock.read_text().splitlines(keepends=True)
            lock.write_text("".join(["2147483647\n", *lines[1:]]))
        for stale in self.socket_folder.glob(".s.PGSQL.*"):
            stale.unlink(missing_ok=True)

    def _is_ready(self, pid: int) -> bool:
        """Returns whether the 8th line of the server's pid file says so, as `pg_ctl --wait` does."""
        try:
            lines = (self.cluster / "postmaster.pid").read_text().split("\n")
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"
