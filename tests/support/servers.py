"""Servers of the system beside the embedded ones, and the certificates of servers and clients."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from service.launcher.embedded.server import Server
from service.launcher.process import Program, User

# Characters that a URL must encode.
PASSWORD = "p@ss:w/o?r#d%40&=ü"
QUOTED_PASSWORD = quote(PASSWORD, safe="")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def is_listening(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


class SystemServer(Server):
    """A program that listens on a port of 127.0.0.1."""

    def __init__(
        self, argv: Sequence[str | Path], *, port: int, folder: Path, user: User | None = None, name: str = ""
    ) -> None:
        self.port = port
        self.user = user
        self._argv = argv
        self._folder = folder
        self._name = name or Path(argv[0]).name

    def program(self) -> Program:
        return Program(
            name=self._name,
            argv=[shutil.which(self._argv[0]) or self._argv[0], *self._argv[1:]],
            user=self.user,
            log=self._folder / f"{self._name}.log",
            ready=lambda _: is_listening(self.port),
        )

    def read_log(self) -> str:
        return (self._folder / f"{self._name}.log").read_text(errors="replace")

    def kill(self) -> None:
        """Ends it at once, as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None


def redis_words(settings: Mapping[str, object]) -> list[str]:
    """Returns the arguments of a Redis or Valkey with these settings."""
    return [word for name, value in settings.items() for word in (f"--{name}", *str(value).split())]


class Authority:
    """A certificate authority in a folder, whose files are named after what they certify."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self._run("req", "-x509", *_NEW_KEY, "-days", "2", "-subj", "/CN=test", *self._files("authority"))

    @property
    def certificate(self) -> Path:
        return self.folder / "authority.pem"

    def certify(self, name: str, *, subject: str = "", hosts: str = "IP:127.0.0.1", user: User | None = None) -> Path:
        """Returns the path of a new certificate; its key is beside it, with the suffix .key."""
        request = self.folder / f"{name}.csr"
        extensions = self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={hosts}\n")
        key, certificate = self.folder / f"{name}.key", self.folder / f"{name}.pem"
        self._run("req", *_NEW_KEY, "-subj", f"/CN={subject or name}", "-keyout", key, "-out", request)
        signed: list[str | Path] = [
            "-in",
            request,
            "-out",
            certificate,
            "-days",
            "2",
            "-extfile",
            extensions,
            "-CAcreateserial",
        ]
        self._run("x509", "-req", *signed, "-CA", self.certificate, "-CAkey", self.folder / "authority.key")
        key.chmod(0o600)
        if user is not None:
            os.chown(key, user.uid, user.gid)
        return certificate

    def _files(self, name: str) -> list[str | Path]:
        return ["-keyout", self.folder / f"{name}.key", "-out", self.folder / f"{name}.pem"]

    def _run(self, *arguments: str | Path) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def find_debian_postgres() -> Path | None:
    """Returns the folder of the programs of the system's PostgreSQL, which has TLS; the embedded one has none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return found[-1].parent if found else None
