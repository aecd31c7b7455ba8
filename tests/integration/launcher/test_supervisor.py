"""Child processes that end with their parent, and their supervisor."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from service.launcher import StartError, parent_death
from service.launcher.exit_reasons import exit_reason, find_reason, log_position
from service.launcher.process import Program, trim_log
from service.launcher.supervisor import Supervisor
from tests.support.processes import is_alive
from tests.support.waiting import wait_for

WRAPPER = Path(parent_death.__file__)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_logs_are_bounded(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_bytes(b"x" * (11 << 20))
    trim_log(log)
    assert log.stat().st_size == 0
    assert (tmp_path / "server.log.1").stat().st_size == 10 << 20


def test_exit_reason_has_no_control_characters(tmp_path: Path) -> None:
    """A server's log may repeat what a client sent."""
    log = tmp_path / "server.log"
    log.write_text("ready\nFATAL:  no role \x1b[2J\x9b31m\u202e\n")
    words = exit_reason(Program("server", ["/bin/false"], log=log))
    assert words == rf"'no role \x1b[2J\x9b31m\u202e' (more in {log})"


OLD_REASON = "2026-11-28 20:11:33.983 UTC [1] FATAL:  an old reason"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([OLD_REASON], "an old reason"),
        ([OLD_REASON, "2026-11-29 20:11:34 UTC [2] PANIC:  could not read file"], "could not read file"),
        (
            [
                "2026 UTC [2] FATAL:  no status of transaction 753",
                '2026 UTC [2] DETAIL:  Could not open "pg_xact/0000".',
            ],
            'no status of transaction 753 (Could not open "pg_xact/0000")',
        ),
        (["UTC [2] FATAL:  no file", "UTC [3] FATAL:  the database system is starting up"], "no file"),
        (
            ["UTC [2] FATAL:  no file", 'UTC [3] ERROR:  relation "x" does not exist', "UTC [2] LOG:  shut down"],
            "no file",
        ),
        (["postgres: could not find it", "Expected it there"], "postgres: could not find it Expected it there"),
        (["22289:M 29 Nov 2026 20:11:33.983 # Bad file format"], "Bad file format"),
        (["Error: DAGUERRE_STORAGE: it cannot be used", "another line"], "DAGUERRE_STORAGE: it cannot be used"),
        (["FATAL:  " + "x" * 5000], "x" * 500 + "…"),
        ([], ""),
    ],
)
def test_reason_is_found_in_a_log(words: list[str], reason: str) -> None:
    assert find_reason(words) == reason


def test_older_reason_is_not_shown(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text(f"{OLD_REASON}\n")
    program = Program("server", ["/bin/false"], log=log)
    position = log_position(program)
    assert exit_reason(program, position) == f"it printed nothing (more in {log})"
    with log.open("a") as file:
        file.write("2026 UTC [1] PANIC:  a new reason\n")
    assert exit_reason(program, position) == f"a new reason (more in {log})"
    log.write_text("PANIC:  after a trim\n")
    assert exit_reason(program, position) == f"after a trim (more in {log})"


class TestParentDeath:
    def test_watcher_ends_the_program(self) -> None:
        program = (
            "import os, runpy, subprocess, sys, time\n"
            "code = 'import runpy, sys; sys.platform = \"other\"; sys.argv = sys.argv[1:]; '"
            "'runpy.run_path(sys.argv[0], run_name=\"__main__\")'\n"
            "child = subprocess.Popen([sys.executable, '-c', code, sys.argv[1], str(os.getpid()), '15', '-',"
            " '/bin/sleep', '60'])\n"
            "print(child.pid, flush=True); time.sleep(60)\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", program, str(WRAPPER)], stdout=subprocess.PIPE, text=True
        ) as parent:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            wait_for(lambda: "sleep" in Path(f"/proc/{pid}/cmdline").read_text())
            parent.kill()
        wait_for(lambda: not is_alive(pid))

    def test_nothing_starts_for_a_dead_parent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        parent_death = runpy.run_path(str(WRAPPER))
        monkeypatch.setattr(sys, "platform", "linux")
        with pytest.raises(SystemExit):
            parent_death["die_with_parent"](os.getpid(), 0)


def trapping(name: str, command: str, folder: Path, *, grace_s: float = 30) -> Program:
    """A program that runs `command` on SIGTERM; it is ready when it can."""
    ready = folder / f"{name} is ready"
    script = f"trap '{command}' TERM; touch '{ready}'; while :; do sleep 0.1; done"
    return Program(name, ["/bin/sh", "-c", script], grace_s=grace_s, ready=lambda _: ready.exists())


class TestSupervisor:
    def test_restarts_are_delayed_more_and_more(self, tmp_path: Path) -> None:
        starts, lines = tmp_path / "starts", list[str]()

        def report(line: str) -> None:
            lines.append(line)
            if len(lines) == 3:
                os.kill(os.getpid(), signal.SIGTERM)

        with Supervisor(report=report) as supervisor:
            supervisor.start([Program("Quick", ["/bin/sh", "-c", f"echo >> {starts}; sleep 0.1; exit 3"])])
            supervisor.run()
        assert starts.read_text().count("\n") == 3
        assert [line.split(")", 1)[1] for line in lines] == [
            " ended with exit code 3: starting it again",
            " ended with exit code 3: starting it again in 1 s",
            " ended with exit code 3: starting it again in 2 s",
        ]

    @pytest.mark.slow
    def test_last_group_stops_first_and_a_second_signal_hurries(self, tmp_path: Path) -> None:
        order, signalled = tmp_path / "order", tmp_path / "signalled"
        stubborn = trapping("Stubborn", f"touch {signalled}", tmp_path, grace_s=60)
        polite = trapping("Polite", f"date +%s > {order}; exit", tmp_path)

        def signal_twice() -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            wait_for(signalled.exists)
            os.kill(os.getpid(), signal.SIGTERM)

        with Supervisor(report=lambda _: None) as supervisor:
            supervisor.start([polite])
            supervisor.start([stubborn])
            started = time.time()
            signalling = threading.Thread(target=signal_twice)
            signalling.start()
            supervisor.run()
            supervisor.stop()
            signalling.join()
        assert 2 < time.time() - started < 30  # half of the stubborn one's grace
        assert int(order.read_text()) >= int(started) + 2

    def test_children_of_a_killed_program_end(self, tmp_path: Path) -> None:
        pids = tmp_path / "pids"
        program = Program("Parent", ["/bin/sh", "-c", f"sleep 60 & echo $$ $! >> {pids}; wait"])
        with Supervisor(report=lambda _: None) as supervisor:
            supervisor.start([program])
            wait_for(lambda: pids.exists() and pids.read_text().count("\n") == 1)
            parent, child = map(int, pids.read_text().split())
            os.kill(parent, signal.SIGKILL)
            assert supervisor.wait_until(lambda: pids.read_text().count("\n") == 2, 20)
            wait_for(lambda: not is_alive(child))

    def test_broken_program_raises(self) -> None:
        with Supervisor(report=lambda _: None) as supervisor:
            supervisor.start([Program("Broken", ["/nowhere/program"])])
            with pytest.raises(StartError, match="Broken did not start: it ended with exit code 1"):
                supervisor.wait_until(lambda: False, 10)
