"""One child process: how it is started, stopped and logged."""

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

_WRAPPER = Path(__file__).with_name("parent_death.py")
_LOG_LIMIT_BYTES = 10 << 20


class User(NamedTuple):
    uid: int
    gid: int
    name: str


def name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # e.g. a container that runs under a bare number
        return f"user {uid}"


def run_as(user: User | None, argv: Sequence[str | Path], text: str = "") -> subprocess.CompletedProcess[str]:
    """Runs a short command as `user`. It has its own session, so Ctrl-C does not interrupt it."""
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

    `stop_signal` asks it to stop, `hard_signal` kills it after `grace_s`, `death_signal` is sent if this process dies.
    Without a `log` it writes to this process's own output; `log_is_shared` if other programs write to the same log.
    `prepare` runs before every start. `ready` gets the process id and returns whether the program works.
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
    """Starts the program in its own session, so that Ctrl-C reaches only this process. It ends when this process ends.

    Call it from the main thread: Linux ends the program when the thread that started it ends.
    """
    if program.prepare is not None:
        program.prepare()
    user = f"{program.user.uid}:{program.user.gid}" if program.user else "-"
    wrapper: list[str | Path] = [
        sys.executable,
        "-I",
        "-S",
        _WRAPPER,
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
            [*wrapper, *program.argv],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=dict(program.env) if program.env is not None else None,
            # another user may not be able to enter the current folder
            cwd="/" if program.user else None,
            pass_fds=program.pass_fds,
            start_new_session=True,
        )


def stop(program: Program, process: subprocess.Popen[bytes], grace_s: float | None = None) -> None:
    """Stops the program and waits until it has exited."""
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
    """Kills the rest of the process group of a program that has exited, e.g. the decoders of a killed worker."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def trim_log(log: Path) -> None:
    """Limits a log to two files of 10 MB: its older part moves to `NAME.1`. Works while a program appends to it."""
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
