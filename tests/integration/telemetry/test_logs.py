"""Log lines: JSON, one a line, libraries' included; read from a process of its own."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import hypothesis.strategies
import pytest

from service.config.settings import Settings
from service.telemetry import logs
from service.telemetry.console import ConsoleRenderer
from service.telemetry.request_lines import RequestLine, make_console_renderer, make_json_renderer
from service.telemetry.requests import redact_keys
from tests.conftest import Tenant
from tests.support.daguerre_processes import processes_of
from tests.support.waiting import until

pytestmark = pytest.mark.slow

_SCRIPT = """
import logging, structlog
from service.telemetry import logs
from service.telemetry.requests import request_log
from service.config.settings import Settings
from service.telemetry.console import ConsoleRenderer
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


def test_lines_are_json_with_process_and_level() -> None:
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
from service.telemetry.requests import request_log
from service.config.settings import Settings
from service.telemetry.console import ConsoleRenderer
writes = []
write, sys.stderr.write = sys.stderr.write, lambda text: (writes.append(text), write(text))
logs.configure(Settings(log_level="info", log_format=sys.argv[1]), part="test", pid=1)
log = structlog.get_logger("service")
async def main():
    request_log.write(logging.INFO, {"request_id": "r", "status": 200})
    request_log.write(logging.WARNING, {"request_id": "r", "status": 503})
    request_log.write(logging.DEBUG, {"hidden": True})
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


def test_lines_of_one_iteration_are_written_together() -> None:
    lines = [json.loads(line) for line in run_in_a_loop("json")]
    assert [line["event"] for line in lines] == ["request", "request", "another", "of a thread", "last"]


def test_request_line_has_the_common_fields() -> None:
    lines = [json.loads(line) for line in run_in_a_loop("json")]
    assert [(line["level"], line["status"]) for line in lines[:2]] == [("info", 200), ("warning", 503)]
    assert set(lines[0]) - {"request_id", "status"} == set(lines[2])
    assert len(lines[0]["timestamp"]) == len(lines[2]["timestamp"])
    shown = run_in_a_loop("console")
    assert len(shown) == 5
    assert "request" in shown[0]
    assert "status" in shown[0]


_HOSTILE = """
import logging, sys, structlog
from service.telemetry import logs
from service.telemetry.requests import request_log
from service.config.settings import Settings
from service.telemetry.console import ConsoleRenderer
logs.configure(Settings(log_level="info", log_format=sys.argv[1]), part="test", pid=1)
TEXTS = [
    "\\x1b[2J\\x1b[31mred", "\\x1b]0;title\\x07", "\\x9b31m", "\\x08\\x08\\x7f", "\\x00",
    "\\r\\nforged [info] line=1", "\\x85a", "\\u202eevil\\u202c", "\\u2066a\\u2069", "\\u200ba\\ufeff",
    "a\\u2028b\\u2029c", "\\udcff", "\\U000e0041", "\\ud83d", "\\xad",
]
class Odd:
    def __repr__(self):
        return TEXTS[0]
log = structlog.get_logger("service")
for text in TEXTS:
    request_log.write(logging.INFO, {"request_id": text, "path": text, "cause": text})
    log.warning("decoder.failed", stderr=text, inner={text: [text, (text,)]}, odd=Odd())
    log.info(text)
    logging.getLogger("aiohttp.server").warning("Error handling %s", text)
    try:
        raise ValueError(text)
    except ValueError as error:
        log.exception("request.failed", error=error)
        logging.getLogger("asyncio").exception("lost")
"""


def run_hostile(log_format: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _HOSTILE, log_format], capture_output=True, timeout=20, check=True, encoding="utf-8"
    )
    assert done.stdout == ""
    return done.stderr


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_control_characters_of_clients_are_escaped(log_format: str) -> None:
    shown = run_hostile(log_format)
    assert [letter for letter in shown if not letter.isprintable() and letter != "\n"] == []
    for escape in (r"\x1b[2J", r"\x9b31m", r"\x7f", r"\u202e", r"\u2028", r"\udcff", r"\U000e0041"):
        assert escape in shown
    assert not [line for line in shown.splitlines() if line.startswith("forged")]


def test_escaped_lines_are_still_json() -> None:
    lines = [json.loads(line) for line in run_hostile("json").split("\n")[:-1]]
    assert len(lines) == 15 * 6
    assert lines[0]["path"] == r"\x1b[2J\x1b[31mred"
    assert lines[1]["inner"] == {lines[0]["path"]: [lines[0]["path"], [lines[0]["path"]]]}
    assert lines[4]["exception"].startswith("Traceback (most recent call last):\n")


@pytest.mark.settings(log_format="console")
async def test_client_text_is_escaped(settings: Settings, tenant: Tenant, tmp_path: Path) -> None:
    """Over a real connection and in the log of a real process."""
    async with processes_of(settings, tenant.key, tmp_path / "logs") as daguerre:
        api = daguerre.start_api()
        await daguerre.wait_unavailable("worker")
        for target in (
            "/%1b%5B31m%0A%0Dforged%E2%80%AE%C2%9B",
            "/a\x1b[31m",
            "/\x9b31m",
            "/x?\x1b=%1b&%1b=%1b",
            "/\udcff",
        ):
            for name, value in (("X-Request-Id", "\x1b[2J"), ("X-Request-Id", "\u202e"), ("\x1b", "a"), ("X", "%1b")):
                reader, writer = await asyncio.open_connection("127.0.0.1", daguerre.port)
                request = f"GET {target} HTTP/1.1\r\nHost: x\r\n{name}: {value}\r\n\r\n"
                writer.write(request.encode("utf-8", "surrogateescape"))
                assert (await reader.readline()).split()[1] in {b"400", b"404"}
                writer.close()
        await until(lambda: "forged" in api.log.read_text())
        shown = api.log.read_bytes().decode()
    assert r"/\x1b[31m\n\rforged\u202e\x9b" in shown.replace("\\\\", "\\")
    assert [letter for letter in shown if not letter.isprintable() and letter != "\n"] == []


def render(**event: object) -> list[str]:
    fields = {"timestamp": "2026-11-29T20:13:02.123456Z", "level": "info", "part": "api", "pid": 4711, **event}
    return ConsoleRenderer(colours=False)(None, "", fields).split("\n")


def test_console_line_begins_with_its_event() -> None:
    fields = {
        "request_id": "0123456789abcdef",
        "method": "GET",
        "path": "/v1/images/nkCzOth",
        "status": 200,
        "ms": 12.3,
    }
    [line] = render(event="request", **fields)
    assert line == "2026-11-29 20:13:02.123Z request GET /v1/images/nkCzOth status=200 ms=12.3 id=0123456789abcdef"
    [line] = render(event="probe.deferred", level="warning", reason="a b")
    assert line == "2026-11-29 20:13:02.123Z probe.deferred WARNING reason='a b' api/4711"


@hypothesis.given(
    path=hypothesis.strategies.text(min_size=1, max_size=90)
    | hypothesis.strategies.text("ab/", min_size=1, max_size=90)
    | hypothesis.strategies.just("/v1/images/nkCzOth"),
    method=hypothesis.strategies.sampled_from(["GET", "DELETE", "M-SEARCH", "A B"]),
    status=hypothesis.strategies.sampled_from([200, 404, 499]),
    form=hypothesis.strategies.sampled_from(["console", "colours", "json"]),
)
def test_usual_request_is_rendered_like_any_event(path: str, method: str, status: int, form: str) -> None:
    process = {"part": "api", "pid": 4711}
    json_renderer = make_json_renderer(json.dumps(process, separators=(",", ":")))
    render = json_renderer if form == "json" else make_console_renderer(colours=form == "colours")
    text = render(RequestLine("0123456789abcdef", method, path, status, 0.01234))
    if text is None:
        assert (path, method.isalpha()) != ("/v1/images/nkCzOth", True)
        return
    found = re.search(r"20[0-9-]{8}[T ][0-9:]{8}[.][0-9]+Z", text)
    assert found is not None
    fields = {"request_id": "0123456789abcdef", "method": method, "path": redact_keys(path), "status": status}
    now = datetime.fromisoformat(found[0])
    event = {**process, **fields, "ms": 12.3, "event": "request", "level": "info", "timestamp": now}
    if form == "json":
        assert json.loads(text) == {**event, "timestamp": found[0]}
    else:
        assert text == ConsoleRenderer(colours=form == "colours")(None, "", logs._escape(None, "", event))


def test_console_lines_fit_100_columns() -> None:
    for size in (1, 40, 95, 96, 97, 500):
        lines = render(event="x", path="/" + "a" * size, cause=r"\x1b" * size, inner={"a" * size: ["b" * size]})
        assert max(map(len, lines)) <= 100
        assert "".join(line.removeprefix("    ") for line in lines).replace(" ", "").count("a") >= 2 * size
        assert not [line for line in lines if line.endswith("\\")]


def test_traceback_is_indented() -> None:
    lines = render(event="request.failed", exception="  Traceback\n  ValueError: x")
    assert lines[1:] == ["  Traceback", "  ValueError: x"]
