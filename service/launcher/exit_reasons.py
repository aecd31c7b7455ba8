"""Finds the reason why a program exited, in its log."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Sequence

from service.launcher import StartError
from service.launcher.process import Program, trim_log

_TAIL_BYTES = 64 * 1024
_MAX_CHARACTERS = 500
_POLL_INTERVAL_S = 0.005
# PostgreSQL: "2026-11-29 20:11:33.983 UTC [22289] FATAL:  message", followed by its details on a line each.
_SEVERE = re.compile(r".*?\b(?P<severity>PANIC|FATAL|ERROR):\s+(?P<message>.+)")
_DETAIL = re.compile(r".*?\bDETAIL:\s+(?P<message>.+)")
_ORDINARY = re.compile(r".*?\b(LOG|HINT|CONTEXT|STATEMENT|WARNING|NOTICE|DETAIL):\s+")
# The response to a client that connects while the server starts or stops: not a reason.
_ABOUT_CLIENTS = "the database system is "
# Valkey: "22289:M 29 Nov 2026 20:11:33.983 # message".
_VALKEY = re.compile(r"[0-9]+:[A-Z] [0-9A-Za-z :.]+ [#*.-] ")
# Daguerre's own commands.
_COMMAND_ERROR = "Error: "


def log_position(program: Program) -> int:
    """Returns the size of the program's log in bytes: the position where the output of its next start begins."""
    if program.log is None:
        return 0
    trim_log(program.log)
    return program.log.stat().st_size if program.log.exists() else 0


def exit_reason(program: Program, since: int = 0) -> str:
    """Returns the last error in the program's log after position `since`, and the path of the log.

    The reason of an earlier start would mislead the operator: `since` is what `log_position` returned before the start.
    """
    if program.log is None:
        return "its output above says why"
    return f"{find_reason(_read_lines(program, since)) or 'it printed nothing'} (more in {program.log})"


def wait_ready(program: Program, process: subprocess.Popen[bytes], since: int = 0, timeout_s: float = 60) -> None:
    """Returns as soon as the program is ready. Raises StartError with the reason if it ends or does not get ready."""
    deadline = time.monotonic() + timeout_s
    while program.ready is not None and not program.ready(process.pid):
        if process.poll() is not None:
            raise StartError(f"{program.name} did not start: {exit_reason(program, since)}")
        if time.monotonic() > deadline:
            raise StartError(f"{program.name} is not ready after {timeout_s:.0f} s: {exit_reason(program, since)}")
        time.sleep(_POLL_INTERVAL_S)


def find_reason(lines: Sequence[str]) -> str:
    """Returns the last reason in these log lines of PostgreSQL, Valkey or Daguerre; "" if `lines` is empty."""
    reason = _find_severe(lines) or _find_command_error(lines) or _join_plain(lines)
    if not reason and lines:
        reason = _VALKEY.sub("", lines[-1], count=1)
    if not reason.isprintable():  # a server's log may repeat what a client sent
        reason = ascii(reason)
    return reason if len(reason) <= _MAX_CHARACTERS else f"{reason[:_MAX_CHARACTERS]}…"


def _read_lines(program: Program, since: int) -> list[str]:
    assert program.log is not None  # noqa: S101  for the type checker
    if not program.log.exists():
        return []
    with program.log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = since if since <= size else 0  # it was trimmed meanwhile
        file.seek(max(start, size - _TAIL_BYTES))
        return [line for line in file.read(_TAIL_BYTES).decode(errors="replace").splitlines() if line.strip()]


def _find_severe(lines: Sequence[str]) -> str:
    """Returns PostgreSQL's last fatal message, or else its last error, with the detail on the next line."""
    matches = [(number, match) for number, line in enumerate(lines) if (match := _SEVERE.fullmatch(line))]
    matches = [(number, match) for number, match in matches if not match["message"].startswith(_ABOUT_CLIENTS)]
    fatal = [pair for pair in matches if pair[1]["severity"] != "ERROR"] or matches
    if not fatal:
        return ""
    number, match = fatal[-1]
    next_line = lines[number + 1] if number + 1 < len(lines) else ""
    detail = _DETAIL.fullmatch(next_line)
    return f"{match['message']} ({detail['message'].rstrip('.')})" if detail else match["message"]


def _find_command_error(lines: Sequence[str]) -> str:
    errors = [line.removeprefix(_COMMAND_ERROR) for line in lines if line.startswith(_COMMAND_ERROR)]
    return errors[-1] if errors else ""


def _join_plain(lines: Sequence[str]) -> str:
    """Returns what PostgreSQL prints before it has a log, over several lines."""
    plain = [line for line in lines[-4:] if not _ORDINARY.match(line)]
    return " ".join(plain) if plain and plain[0].startswith("postgres: ") else ""
