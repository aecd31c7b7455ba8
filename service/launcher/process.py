"""One child process: what to run and how to end it."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

_LEASH = Path(__file__).with_name("parent_death.py")
_LOG_LIMIT_BYTES = 10 << 20


class User(NamedTuple):
    uid: int
    gid: int
    name: str


def name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # as in a container that is run with a number
        return f"user {uid}"


def run_as(user: User | None, argv: Sequence[str | Path], text: str = "") -> subprocess.CompletedProcess[str]:
    """Run a short command to its end as that user. In a session of its own: Ctrl-C would cut it short alone."""
    return subprocess.run(
        argv,
        user=user.uid if user else None,
        group=user.gid if user else None,
        extra_groups=[] if user else None,
        cwd="/",
        input=text,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        start_new_session=True,
    )


@dataclass(frozen=True, slots=True)
class Program:
    """A command to keep running.

    `stop_signal` asks it to end, `hard_signal` ends it after `grace_s`, and `death_signal` is what it is sent if
    this process dies. Without a `log` it writes to this process's own output; `log_is_shared` if others write to the
    same one. `prepare` runs before every start, `ready` tells that it works.
    """

    name: str
    argv: Sequence[str | Path]
    env: Mapping[str, str] | None = None
    user: User | None = None
    pass_fds: tuple[int, ...] = ()
    log: Path | None = None
    log_is_shared: bool = False
    stop_signal: signal.Signals = signal.SIGTERM
    hard_signal: signal.Signals = signal.SIGKILL
    death_signal: signal.Signals = signal.SIGTERM
    grace_s: float = 30
    prepare: Callable[[], None] | None = None
    ready: Callable[[int], bool] | None = None


def start(program: Program) -> subprocess.Popen[bytes]:
    """Start it in a session of its own, so that Ctrl-C reaches only this process, tied to this process's life.

    Call it from the main thread: Linux ends the program with the thread that started it.
    """
    if program.prepare is not None:
        program.prepare()
    user = f"{program.user.uid}:{program.user.gid}" if program.user else "-"
    leash: list[str | Path] = [
        sys.executable,
        "-I",
        "-S",
        _LEASH,
        str(os.getpid()),
        str(int(program.death_signal)),
        user,
    ]
    with contextlib.ExitStack() as stack:
        log = None
        if program.log is not None:
            trim_log(program.log)
            log = stack.enter_context(append_to(program.log))
        return subprocess.Popen(
            [*leash, *program.argv],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=dict(program.env) if program.env is not None else None,
            # another user may not be able to enter this one's folder
            cwd="/" if program.user else None,
            pass_fds=program.pass_fds,
            start_new_session=True,
        )


def stop(program: Program, process: subprocess.Popen[bytes], grace_s: float | None = None) -> None:
    """End it and wait until it has ended."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(program.stop_signal)
    try:
        process.wait(program.grace_s if grace_s is None else grace_s)
    except subprocess.TimeoutExpired:
        process.send_signal(program.hard_signal)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    end_orphans(process)


def end_orphans(process: subprocess.Popen[bytes]) -> None:
    """End what a program that has ended left behind in its process group, like a killed worker's children."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def trim_log(log: Path) -> None:
    """Keep a log within two files of 10 MB: its old part goes to `NAME.1`. Also while a program appends to it."""
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > _LOG_LIMIT_BYTES:
            old = log.with_name(f"{log.name}.1")
            old.unlink(missing_ok=True)
            with log.open("rb") as source, append_to(old) as target:
                source.seek(-_LOG_LIMIT_BYTES, os.SEEK_END)
                while piece := source.read(1 << 20):
                    target.write(piece)
            os.truncate(log, 0)


def append_to(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")
