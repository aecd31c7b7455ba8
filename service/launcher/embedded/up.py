"""`daguerre up`: everything on one machine, started, supervised and stopped together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import asyncpg
import click

from service.config import settings as configuration
from service.config.settings import Settings
from service.launcher import StartError, listening, serve
from service.launcher.embedded import EmbeddedError, data_folder, first_key, instance
from service.launcher.embedded.data_folder import DataFolder
from service.launcher.embedded.first_key import FirstKey
from service.launcher.embedded.instance import Instance
from service.launcher.embedded.log_file import LogFile
from service.launcher.embedded.object_store import ObjectStoreServer
from service.launcher.embedded.postgres import Postgres, server_user
from service.launcher.embedded.terminal import Terminal
from service.launcher.embedded.valkey import Valkey
from service.launcher.supervisor import Stopped, Supervisor
from service.schema.applied import SchemaMismatch
from service.schema.changes import create_schema, upgrade_schema
from service.storage.backends import open_setup
from service.telemetry import metric_files
from service.verification.pairing import require_pair

Result = TypeVar("Result")

_SAMPLE = Path(__file__).with_name("sample.jpg")
_READY_TIMEOUT_S = 60
_NOTE_INTERVAL_S = 5
_PORT_RETRY_S = 10


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on (8080); 0 picks a free one.")
@click.option("--host", help="Address to listen on (127.0.0.1); 0.0.0.0 for all.")
@click.option(
    "--data",
    type=click.Path(path_type=Path, readable=False),
    help="Folder for the database, the images and the logs (also DAGUERRE_DATA).",
)
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Worker processes.")
@click.option("--new-database", is_flag=True, help="Start with an empty database although the storage has images.")
@click.option(
    "--storage",
    type=click.Choice(["s3"]),
    help="Start an object store, too, and keep the images in it; to try it. Later starts on the same data do so again.",
)
def up(
    *, port: int | None, host: str | None, data: Path | None, workers: int, new_database: bool, storage: str | None
) -> None:
    """Start everything: PostgreSQL, Valkey, the API and a worker. Ctrl-C stops it."""
    terminal = Terminal(sys.stdout)
    try:
        settings = configuration.load(port=port, host=host, data=data)
        options = Options(workers=workers, is_new_database=new_database, has_object_store=storage is not None)
        sys.exit(run(settings, options, terminal))
    except (StartError, configuration.SettingsError) as error:
        raise click.ClickException(str(error)) from None


@dataclass(frozen=True, slots=True)
class Options:
    workers: int
    is_new_database: bool = False
    has_object_store: bool = False


def run(settings: Settings, options: Options, terminal: Terminal) -> int:
    """Starts everything, and returns the exit code after it has stopped. Raises StartError if it cannot start."""
    workers = options.workers
    own_postgres = "database_url" not in settings.model_fields_set
    was_ready = False
    notes: list[str] = []
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(data_folder.claim(settings.data, server_user() if own_postgres else None))
        stack.callback(metric_files.remove, settings.metrics_folder)
        terminal.title(f"Daguerre, data in {folder.path}")
        retry_s = _PORT_RETRY_S if folder.unclean else 0
        listener = stack.enter_context(listening.bind(settings.host, settings.port, retry_s=retry_s))
        # People read the log of `up`, so it is written for them unless JSON is configured.
        log_format = "json" if settings.log_format == "json" else "console"
        log = stack.enter_context(LogFile(folder.main_log, sys.stderr.fileno(), as_json=log_format == "json"))
        supervisor = stack.enter_context(Supervisor(report=partial(_report, terminal, log)))
        try:
            local_url = listening.local_url(listener)
            addresses = _start_servers(settings, options, folder, supervisor, terminal, local_url=local_url)
            is_new = not first_key.path(folder.path).exists()
            with terminal.step("Schema and first account"):
                storage = open_setup(addresses.storage_settings(settings.model_copy(update={"data": folder.path})))
                pairing = require_pair(addresses.database_url, storage, is_new_database=options.is_new_database)
                _run_until_done(supervisor, pairing)
                if addresses.storage:
                    folder.object_store_mark.touch()
                tables = _prepare_tables(addresses.database_url, is_own=own_postgres, report=notes.append)
                _run_until_done(supervisor, tables)
                first = _run_until_done(supervisor, first_key.prepare(addresses.database_url, folder.path))
            for note in notes:
                terminal.note(note)
            with terminal.step(f"API and {workers} worker{'s' if workers > 1 else ''}", has_notes=True):
                env = _environment(folder.path, addresses, log_format)
                # SIGKILL: the servers end at the same time, and without them no request could be finished.
                kill, output = signal.SIGKILL, folder.main_log
                supervisor.start(serve.worker_programs(workers, settings, env, death_signal=kill, log=output))
                supervisor.start(serve.api_programs(listener, settings, env, death_signal=kill, log=output))
                _wait_ready(supervisor, listener, terminal.note)
            instance.announce(folder.path, addresses)
            was_ready = True
            with log.paused():
                # Output that does not go to a terminal may be kept in a log, so it gets no key.
                _show_banner(terminal, addresses, folder, first, show_key=is_new and terminal.is_terminal)
            supervisor.run()
        except Stopped:
            pass
        terminal.line("\nStopping: requests and jobs in flight are finished first (press Ctrl-C again to hurry)")
        listener.close()
        supervisor.stop()
        terminal.line("Stopped")
    return 0 if was_ready else 130


def _prepare_tables(url: str, *, is_own: bool, report: Callable[[str], None]) -> Coroutine[None, None, int]:
    """Upgrades older tables only in the database of this `up`: no other process uses that, and none can reach it before
    `up` has started it. For a database that is configured, the operator decides when.
    """
    return upgrade_schema(url, report=report) if is_own else create_schema(url)


def _start_servers(
    settings: Settings,
    options: Options,
    folder: DataFolder,
    supervisor: Supervisor,
    terminal: Terminal,
    *,
    local_url: str,
) -> Instance:
    """Starts PostgreSQL and Valkey, each unless its address is configured, and an object store if there is one. Returns
    the addresses of all.
    """
    configured = settings.model_fields_set
    database_url, redis_url = settings.database_url, settings.redis_url
    if "database_url" not in configured:
        with terminal.step("PostgreSQL"):
            connections = max(100, database_connections(options.workers, settings))
            postgres = Postgres(
                folder.postgres,
                socket_folder=folder.run / "postgres",
                log=folder.logs / "postgres.log",
                settings={"max_connections": str(connections)},
            )
            supervisor.start([postgres.program()])
        database_url = postgres.dsn
    if "redis_url" not in configured:
        with terminal.step("Valkey"):
            valkey = Valkey(folder.valkey, socket_path=folder.run / "valkey.sock", log=folder.logs / "valkey.log")
            supervisor.start([valkey.program()])
        redis_url = valkey.url
    public_url = settings.public_url if "public_url" in configured else local_url
    storage = {}
    if _needs_object_store(settings, options, folder):
        with terminal.step("SeaweedFS"):
            store = ObjectStoreServer(
                folder.object_store, socket_folder=folder.run, log=folder.logs / "object-store.log"
            )
            supervisor.start([store.program()])
        storage = {"DAGUERRE_STORAGE": store.url, **store.environment()}
    return Instance(os.getpid(), database_url, redis_url, local_url, public_url, storage)


def _needs_object_store(settings: Settings, options: Options, folder: DataFolder) -> bool:
    """Raises EmbeddedError if another storage is configured, too."""
    if "storage" not in settings.model_fields_set:
        return options.has_object_store or folder.object_store_mark.exists()
    if options.has_object_store:
        raise EmbeddedError(
            "--storage s3 starts an object store of its own: unset DAGUERRE_STORAGE, or omit the option"
        )
    return False


def database_connections(workers: int, settings: Settings) -> int:
    """Returns the connections of all pools together, and a few for the operator."""
    return (settings.api_processes + workers) * settings.database_connections + 20


def _environment(data: Path, addresses: Instance, log_format: str) -> dict[str, str]:
    """Returns the environment of Daguerre's own processes: this one's, and the addresses of the servers."""
    return {
        **os.environ,
        **addresses.storage,
        "DAGUERRE_DATA": str(data),
        "DAGUERRE_DATABASE_URL": addresses.database_url,
        "DAGUERRE_REDIS_URL": addresses.redis_url,
        "DAGUERRE_PUBLIC_URL": addresses.public_url,
        "DAGUERRE_LOG_FORMAT": log_format,
        "DAGUERRE_METRICS_PORT": "0",  # workers on one machine cannot share a port, and the API shows theirs
    }


def _wait_ready(supervisor: Supervisor, listener: socket.socket, note: Callable[[str], None]) -> None:
    """Returns when /readyz reports that everything works: database, queue, storage and a worker."""
    state = ""

    def is_ready() -> bool:
        nonlocal state
        response = listening.get(listener, "/readyz")
        status = f"/readyz responds {response.status} {response.body}"
        state = status if response.status else "/readyz does not respond"
        return response.status == 200

    for waited_s in range(0, _READY_TIMEOUT_S, _NOTE_INTERVAL_S):
        if waited_s:
            note(f"Not ready yet: {state}")
        if supervisor.wait_until(is_ready, _NOTE_INTERVAL_S, poll_s=0.05):
            return
    raise EmbeddedError(f"Daguerre is not ready after {_READY_TIMEOUT_S} s: {state}")


def _run_until_done(supervisor: Supervisor, work: Coroutine[None, None, Result]) -> Result:
    """Runs `work` until it is done. Raises Stopped if a signal arrives first, EmbeddedError if the database fails."""

    async def watch() -> Result:
        task = asyncio.ensure_future(work)
        while not task.done():
            if supervisor.stop_requests:
                task.cancel()
                await asyncio.wait([task])
                raise Stopped
            await asyncio.wait([task], timeout=0.1)
        return task.result()

    try:
        return asyncio.run(watch())
    except SchemaMismatch as error:
        raise EmbeddedError(str(error)) from None
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise EmbeddedError(f"The database cannot be used: {str(error) or type(error).__name__}") from error


def _report(terminal: Terminal, log: LogFile, text: str) -> None:
    log.write("program.restarted", text)
    terminal.note(text)


def _show_banner(
    terminal: Terminal, addresses: Instance, folder: DataFolder, first: FirstKey, *, show_key: bool
) -> None:
    rows = [("Address", addresses.local_url)]
    if addresses.public_url != addresses.local_url:
        rows.append(("Public", addresses.public_url))
    names = ["Key", ""]
    rows += zip(names, _describe_key(folder.path, first, show=show_key), strict=False)
    rows.append(("Log", f"{folder.main_log} (at most 20 MB, in two files)"))
    command = "" if first.key is None else _sample_request(addresses, folder.path)
    terminal.ready(rows, command, f"Press Ctrl-C to stop. Your data stays in {folder.path}.")


def _describe_key(data: Path, first: FirstKey, *, show: bool) -> list[str]:
    """Returns lines that say where the first account's key is stored; with `show` the first line is the key."""
    command, option = os.environ.get("DAGUERRE_COMMAND", "daguerre"), f"--data {shlex.quote(str(data))}"
    account = shlex.quote(first.account)
    create = f"create another: {command} keys create {account} {option}"
    if first.is_revoked:
        return ["the first key was revoked", create]
    if first.key is None:
        return [f"list the existing keys: {command} keys list {account} {option}", create]
    show_again = f"cat {shlex.quote(str(first_key.path(data)))}"
    return [first.key, f"shown once; to see it again: {show_again}"] if show else [f"to see it: {show_again}"]


def _sample_request(addresses: Instance, data: Path) -> str:
    """Returns a command that uploads the sample. It reads the key from its file, so the text does not contain it."""
    lines = [
        f'curl "{addresses.local_url}/v1/images?with_exif&verbose"',
        f'-H "X-Api-Key: $(cat {shlex.quote(str(first_key.path(data)))})"',
        "-H 'Content-Type: image/jpeg'",
        f"--data-binary {shlex.quote(f'@{_SAMPLE}')}",
    ]
    return " \\\n    ".join(lines)
