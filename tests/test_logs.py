"""Log lines: JSON, one a line, libraries' included; read from a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

_SCRIPT = """
import logging, structlog
from service import logs
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
