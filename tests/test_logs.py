"""Log lines: JSON, one a line, libraries' included; read from a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

_SCRIPT = """
import logging, structlog
from service.telemetry import logs
from service.settings import Settings
logs.configure(Settings(log_level="info", log_format="json"), part="test", pid=1)
log = structlog.get_logger("service")
log.debug("hidden")
log.info("request", status=200)
try:
    1 / 0
except ZeroDivisionError:
    log.exception("failed")
    logging.getLogger("arq.worker").exception("%s failed", "job")
logging.getLogger("arq.worker").info("hidden")
"""


def test_every_line_is_json_with_its_process_and_level() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, timeout=20, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.stdout == ""
    assert [(line["event"], line["level"], line["part"]) for line in lines] == [
        ("request", "info", "test"),
        ("failed", "error", "test"),
        ("job failed", "error", "test"),
    ]
    assert "ZeroDivisionError" in lines[1]["exception"]
    assert "ZeroDivisionError" in lines[2]["exception"]
    assert lines[2]["logger"] == "arq.worker"


_IN_A_LOOP = """
import asyncio, logging, sys, threading, structlog
from service.telemetry import logs
from service.settings import Settings
writes = []
write, sys.stderr.write = sys.stderr.write, lambda text: (writes.append(text), write(text))
logs.configure(Settings(log_level="info", log_format=sys.argv[1]), part="test", pid=1)
log = structlog.get_logger("service")
async def main():
    logs.requests.write(logging.INFO, {"request_id": "r", "status": 200})
    logs.requests.write(logging.WARNING, {"request_id": "r", "status": 503})
    logs.requests.write(logging.DEBUG, {"hidden": True})
    log.info("another")
    await asyncio.sleep(0)
    assert len(writes) == 1
    await asyncio.to_thread(log.warning, "of a thread")
    assert len(writes) == 2
    log.info("last")
asyncio.run(main())
"""


def run_in_a_loop(log_format: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", _IN_A_LOOP, log_format], capture_output=True, text=True, timeout=20, check=True
    )
    return done.stderr.splitlines()


def test_lines_of_one_turn_of_the_loop_are_written_together_and_none_is_lost() -> None:
    lines = [json.loads(line) for line in run_in_a_loop("json")]
    assert [line["event"] for line in lines] == ["request", "request", "another", "of a thread", "last"]


def test_the_line_of_a_request_looks_like_any_other() -> None:
    lines = [json.loads(line) for line in run_in_a_loop("json")]
    assert [(line["level"], line["status"]) for line in lines[:2]] == [("info", 200), ("warning", 503)]
    assert set(lines[0]) - {"request_id", "status"} == set(lines[2])
    assert len(lines[0]["timestamp"]) == len(lines[2]["timestamp"])
    shown = run_in_a_loop("console")
    assert len(shown) == 5
    assert "request" in shown[0]
    assert "status" in shown[0]
