"""A PgBouncer in transaction mode in front of one database of a PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.launcher.embedded.postgres import server_user
from tests.support.folders import temporary_folder
from tests.support.servers import SystemServer, free_port


@contextmanager
def pgbouncer(
    socket_folder: Path, database: str, *, user: str, password: str, pool_size: int, options: str = ""
) -> Iterator[SystemServer]:
    """Yields the running server, which knows the database as `pooled`. `options` are of the database."""
    port = free_port()
    with temporary_folder() as folder:
        (folder / "users.txt").write_text(f'"{user}" "{password}"\n')
        (folder / "pgbouncer.ini").write_text(
            f"""
[databases]
pooled = host={socket_folder} dbname={database} {options}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 200
auth_type = scram-sha-256
auth_file = {folder}/users.txt
"""
        )
        argv: list[str | Path] = ["pgbouncer", folder / "pgbouncer.ini"]
        with SystemServer(argv, port=port, folder=folder, user=server_user()) as server:
            yield server
