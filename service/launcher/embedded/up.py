"""`daguerre up`: everything on one machine, started, watched and ended together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import TypeVar

import asyncpg
import click

from service.config import settings as configuration
from service.config.settings import Settings
from service.database import SchemaNewer
from service.launcher import StartError, listening, programs
from service.launcher.embedded import EmbeddedError, data_folder, first_key, running, services
from service.launcher.embedded.journal import Journal
from service.launcher.embedded.postgres import Postgres, server_user
from service.launcher.embedded.screen import Screen
from service.launcher.embedded.valkey import Valkey
from service.launcher.supervisor import Stopped, Supervisor
from service.storage.backends import open_originals
from service.telemetry import metric_files
from service.verification.pairing import require_pair

Result = TypeVar("Result")

_SAMPLE = Path(__file__).with_name("sample.jpg")


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on (8080); 0 picks a free one.")
@click.option("--host", help="Address to listen on (127.0.0.1); 0.0.0.0 for all.")
@click.option(
    "--data", type=click.Path(path_type=Path, readable=False), help="Folder that keeps everything (also DAGUERRE_DATA)."
)
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Worker processes.")
@click.option("--new-database", is_flag=True, help="Start with an empty database beside a storage with images.")
def up(*, port: int | None, host: str | None, data: Path | None, workers: int, new_database: bool) -> None:
    """Start everything: PostgreSQL, Valkey, the API and a worker. Ctrl-C stops it."""
    screen = Screen(sys.stdout)
    try:
        settings = configuration.load(port=port, host=host, data=data)
        sys.exit(run(settings, workers=workers, screen=screen, is_new_database=new_database))
    except (StartError, configuration.SettingsError) as error:
        raise click.ClickException(str(error)) from None


def run(settings: Settings, *, workers: int, screen: Screen, is_new_database: bool = False) -> int:
    """Returns the exit code once everything has ended. Raises StartError if it cannot start."""
    own_postgres = "database_url" not in settings.model_fields_set
    was_ready = False
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(data_folder.claim(settings.data, server_user() if own_postgres else None))
        stack.callback(metric_files.remove, settings.metrics_folder)
        screen.title(f"Daguerre, data in {place.path}")
        patience_s = 10 if place.unclean else 0
        listener = stack.enter_context(listening.bind(settings.host, settings.port, patience_s=patience_s))
        # Under `up` people read the log, so it is made for them unless JSON was asked for.
        log_format = "json" if settings.log_format == "json" else "console"
        journal = stack.enter_context(Journal(place.journal, sys.stderr.fileno(), as_json=log_format == "json"))
        supervisor = stack.enter_context(Supervisor(report=partial(_report, screen, journal)))
        try:
            found = _start_servers(
                settings, workers, place, supervisor, screen, local_url=listening.local_url(listener)
            )
            is_new = not first_key.path(place.path).exists()
            with screen.step("Schema and first account"):
                storage = open_originals(settings.storage or place.path / "storage")
                _finish(supervisor, require_pair(found.database_url, storage, is_new_database=is_new_database))
                first = _finish(supervisor, first_key.prepare(found.database_url, place.path))
            with screen.step(f"API and {workers} worker{'s' if workers > 1 else ''}", talkative=True):
                env = services.environment(place.path, found, log_format)
                # The database and the queue go in the same moment, so there is nothing left that it could finish.
                kill, log = signal.SIGKILL, place.journal
                supervisor.start(programs.worker_programs(workers, settings, env, death_signal=kill, log=log))
                supervisor.start(programs.api_programs(listener, settings, env, death_signal=kill, log=log))
                services.wait_ready(supervisor, listener, screen.note)
            running.announce(place.path, found)
            was_ready = True
            with journal.paused():
                # Output that is no terminal's may be kept in a log.
                _show_banner(screen, found, place, first, show_key=is_new and screen.is_terminal)
            supervisor.run()
        except Stopped:
            pass
        screen.line("\nStopping: requests and jobs under way are finished first (Ctrl-C again to hurry)")
        listener.close()
        supervisor.stop()
        screen.line("Stopped")
    return 0 if was_ready else 130


def _start_servers(
    settings: Settings,
    workers: int,
    place: data_folder.Folder,
    supervisor: Supervisor,
    screen: Screen,
    *,
    local_url: str,
) -> running.Running:
    """PostgreSQL and Valkey, each unless another one is given."""
    given = settings.model_fields_set
    database_url, redis_url = settings.database_url, settings.redis_url
    if "database_url" not in given:
        with screen.step("PostgreSQL"):
            connections = max(100, services.database_connections(workers, settings))
            postgres = Postgres(
                place.postgres,
                socket_folder=place.run / "postgres",
                log=place.logs / "postgres.log",
                settings={"max_connections": str(connections)},
            )
            supervisor.start([postgres.program()])
        database_url = postgres.dsn
    if "redis_url" not in given:
        with screen.step("Valkey"):
            valkey = Valkey(place.valkey, socket_path=place.run / "valkey.sock", log=place.logs / "valkey.log")
            supervisor.start([valkey.program()])
        redis_url = valkey.url
    public_url = settings.public_url if "public_url" in given else local_url
    return running.Running(os.getpid(), database_url, redis_url, local_url, public_url)


def _report(screen: Screen, journal: Journal, text: str) -> None:
    journal.write("program.restarted", text)
    screen.note(text)


def _describe_key(data: Path, first: first_key.FirstKey, *, show: bool) -> list[str]:
    """Returns lines: where the first account's key is kept; with `show`, the key itself as well."""
    command, option = os.environ.get("DAGUERRE_COMMAND", "daguerre"), f"--data {shlex.quote(str(data))}"
    account = shlex.quote(first.account)
    another = f"make another: {command} keys create {account} {option}"
    if first.is_revoked:
        return ["the first one was revoked", another]
    if first.key is None:
        return [f"the keys of this data are shown by: {command} keys list {account} {option}", another]
    place = f"cat {shlex.quote(str(first_key.path(data)))}"
    return [first.key, f"shown once; to see it again: {place}"] if show else [f"to see it: {place}"]


def _sample_request(found: running.Running, data: Path) -> str:
    """Returns a command that uploads a picture. The key comes from its file, and is no part of what is shown."""
    lines = [
        f'curl "{found.local_url}/v1/images?with_exif&verbose"',
        f'-H "X-Api-Key: $(cat {shlex.quote(str(first_key.path(data)))})"',
        "-H 'Content-Type: image/jpeg'",
        f"--data-binary {shlex.quote(f'@{_SAMPLE}')}",
    ]
    return " \\\n    ".join(lines)


def _show_banner(
    screen: Screen, found: running.Running, place: data_folder.Folder, first: first_key.FirstKey, *, show_key: bool
) -> None:
    rows = [("Address", found.local_url)]
    if found.public_url != found.local_url:
        rows.append(("Public", found.public_url))
    names = ["Key", ""]
    rows += zip(names, _describe_key(place.path, first, show=show_key), strict=False)
    rows.append(("Log", f"{place.journal} (of 10 MB, and the 10 MB before)"))
    command = "" if first.key is None else _sample_request(found, place.path)
    screen.ready(rows, command, f"Ctrl-C stops it; everything is kept in {place.path}.")


def _finish(supervisor: Supervisor, work: Coroutine[None, None, Result]) -> Result:
    """Run `work` to its end, or until a signal asks to stop."""

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
    except SchemaNewer as error:
        raise EmbeddedError(str(error)) from None
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise EmbeddedError(f"The database cannot be used: {str(error) or type(error).__name__}") from error
