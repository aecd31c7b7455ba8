"""Errors of settings: unknown names and values that cannot be used."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from service.cli import cli
from service.config.environment import OTHERS
from service.config.settings import Settings, SettingsError, load
from tests.support.commands import daguerre_process

ROOT = Path(__file__).parents[3]
# Pydantic's words, for programmers.
JARGON = re.compile(r"Input should|valid integer|unable to parse|pattern|type=|Value error|validation", re.IGNORECASE)


@pytest.fixture(autouse=True)
def _data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DAGUERRE_DATA", str(tmp_path))


def refusal() -> str:
    with pytest.raises(SettingsError) as error:
        load()
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("DAGUERRE_MAX_UPLAOD", "did you mean DAGUERRE_MAX_UPLOAD?"),
        ("DAGUERRE_MAXUPLOAD", "did you mean DAGUERRE_MAX_UPLOAD?"),
        ("DAGUERRE_MAX_UPLOADS", "did you mean DAGUERRE_MAX_UPLOAD?"),
        ("daguerre_max_uplaod", "did you mean DAGUERRE_MAX_UPLOAD?"),
        ("DAGUERRE_REDIS", "did you mean DAGUERRE_REDIS_URL?"),
        ("DAGUERRE_DATABSE_URL", "did you mean DAGUERRE_DATABASE_URL?"),
        ("DAGUERRE_STORAGE_FOLDER", "there is no such setting"),
        ("DAGUERRE_FOO", "docs/configuration.md lists the settings"),
        ("DAGUERRE_", "docs/configuration.md lists the settings"),
        ("DAGUERRE_PORTS_8080", "there is no such setting"),
        ("DAGUERRE_é\x1b[2J", "docs/configuration.md lists the settings"),
    ],
)
def test_an_unknown_setting_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, advice: str) -> None:
    monkeypatch.setenv(name, "1")
    assert advice in refusal()
    assert refusal().isprintable()


def test_every_setting_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        monkeypatch.setenv(f"DAGUERRE_{name.upper()}", "" if default is None else str(default))
    load()


def test_dumped_settings_can_be_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(
        fetch_allow="10.0.0.0/8,[::1]:9001,127.0.0.1:9000",
        not_found_rate_limit="",
        rate_limit="7/m,burst=300",
        rendition_rate_limit="5/h",
        rendition_widths="640,320",
        scrub="7d",
        trusted_proxies="10.0.0.0/8, fd00::/8",
    )
    for name, value in settings.model_dump(exclude_unset=True).items():
        monkeypatch.setenv(f"DAGUERRE_{name.upper()}", str(value))
    assert dict(load()) == dict(settings)


@pytest.mark.parametrize(
    ("former", "name"),
    [
        ("MAX_AGE_S", "CACHE_MAX_AGE_S"),
        ("METRICS", "METRICS_DIR"),
        ("MISS_RATE", "NOT_FOUND_RATE_LIMIT"),
        ("RENDITIONS", "RENDITIONS_DIR"),
        ("RENDITION_RATE", "RENDITION_RATE_LIMIT"),
    ],
)
def test_a_former_name_leads_to_the_new_one(monkeypatch: pytest.MonkeyPatch, former: str, name: str) -> None:
    monkeypatch.setenv(f"DAGUERRE_{former}", "1")
    assert refusal() == f"DAGUERRE_{former}: there is no such setting; did you mean DAGUERRE_{name}?"


def test_variables_of_compose_and_run_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    known = OTHERS | {name.upper() for name in Settings.model_fields}
    for file in ("compose.yaml", "run", "Dockerfile", ".ci/run"):
        assert set(re.findall(r"\bDAGUERRE_(\w+)", (ROOT / file).read_text())) <= known
    for name in OTHERS:
        monkeypatch.setenv(f"DAGUERRE_{name}", "x")
    load()


def test_variables_of_kubernetes_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a pod sees Services named `daguerre`, `daguerre-metrics` and `daguerre-postgres`."""
    for service in ("", "METRICS_", "POSTGRES_"):
        for name, value in {
            "SERVICE_HOST": "10.0.0.11",
            "SERVICE_PORT": "8080",
            "SERVICE_PORT_HTTP": "8080",
            "PORT": "tcp://10.0.0.11:8080",
            "PORT_8080_TCP": "tcp://10.0.0.11:8080",
            "PORT_8080_TCP_PROTO": "tcp",
            "PORT_8080_TCP_PORT": "8080",
            "PORT_8080_TCP_ADDR": "10.0.0.11",
            "PORT_53_UDP_ADDR": "10.0.0.11",
        }.items():
            monkeypatch.setenv(f"DAGUERRE_{service}{name}", value)
    assert (load().port, load().metrics_port) == (8080, 0)
    monkeypatch.setenv("DAGUERRE_PORT", "9000")
    assert load().port == 9000


FOLDERS = ["DATA", "STORAGE", "RENDITIONS_DIR", "METRICS_DIR"]


@pytest.mark.parametrize("name", FOLDERS)
def test_an_empty_folder_is_not_set(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As in an env file with a line for each setting. It does not mean the current folder."""
    monkeypatch.delenv(f"DAGUERRE_{name}", raising=False)
    unset = load()
    monkeypatch.setenv(f"DAGUERRE_{name}", "")
    assert load() == unset
    assert load().model_fields_set == unset.model_fields_set


@pytest.mark.parametrize("name", FOLDERS)
def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv(f"DAGUERRE_{name}", "~/pictures")
    assert getattr(load(), name.lower()) == Path("/home/somebody/pictures")


UNPRINTABLE = "must be the path of a folder in UTF-8, without control characters"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "value", "reason"),
    [
        ("up", "~nobody-of-this-name/x", "there is no home folder of '~nobody-of-this-name'"),
        ("accounts list", "~nobody-of-this-name/x", "there is no home folder of '~nobody-of-this-name'"),
        ("up", "{}/\udcff", UNPRINTABLE),
        ("backup {}/copy", "{}/new\nline", UNPRINTABLE),
        ("restore {}/copy", "{}/\x1b[31m", UNPRINTABLE),
    ],
)
def test_an_odd_data_folder_is_one_sentence(tmp_path: Path, command: str, value: str, reason: str) -> None:
    result = daguerre_process(*command.format(tmp_path).split(), DAGUERRE_DATA=value.format(tmp_path))
    assert (result.returncode, result.stdout, result.stderr) == (1, "", f"Error: DAGUERRE_DATA: {reason}\n")
    assert not list(tmp_path.iterdir())


def test_a_name_too_long_is_one_sentence(tmp_path: Path) -> None:
    result = daguerre_process("accounts", "list", DAGUERRE_DATA=str(tmp_path / ("x" * 300)))
    assert result.returncode == 1
    assert re.fullmatch("Error: DAGUERRE_DATA: .* cannot be used: .*File name too long.*\n", result.stderr)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("PORT", "http", "must be a whole number from 0 to 65535, not 'http'"),
        ("PORT", "65536", "must be a whole number from 0 to 65535, not '65536'"),
        ("API_PROCESSES", "0", "must be a whole number from 1 to 1000, not '0'"),
        ("API_PROCESSES", "2.5", "must be a whole number from 1 to 1000, not '2.5'"),
        ("MAX_PIXELS", "1e6", "must be a whole number from 1 to 1000000000000, not '1e6'"),
        ("PROBE_TIMEOUT_S", "9.5", "must be a number above 0 and up to 9, not '9.5'"),
        ("UPLOAD_TIMEOUT_S", "1801", "must be a number above 0 and up to 1800, not '1801'"),
        ("DRAIN_S", "inf", "must be a number from 0 to 86400, not 'inf'"),
        ("LOG_LEVEL", "loud", "must be debug, info, warning or error, not 'loud'"),
        ("LOG_FORMAT", "", "must be auto, json or console, not ''"),
        ("MAX_UPLOAD", "0", "must be a whole number from 1 on, not '0'"),
        ("MAX_UPLOAD", "many", "'many' is not a size: write bytes, or a number with KB, MB, GB or TB"),
        ("X_ACCEL_REDIRECT", "protected/", "must be a path like /protected"),
        ("DATABASE_URL", "mysql://u:s3cret@db/x", "must begin with postgresql://"),
        ("REDIS_URL", "s3cret@cache", "must begin with redis://, rediss:// or unix://"),
    ],
)
def test_a_reason_is_in_plain_words(monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str) -> None:
    monkeypatch.setenv(f"DAGUERRE_{name}", value)
    assert refusal().startswith(f"DAGUERRE_{name}: {reason}")
    assert "s3cret" not in refusal()


WORDS = [
    "x",
    "-1",
    "nan",
    "",
    "1e400",
    "9" * 5000,
    "\udcff",
    "0",
    "/",
    "://",
    "1.5.",
    "[",
    "http://[::1",
    "a,b",
    "tcp:/",
]


@pytest.mark.parametrize("name", Settings.model_fields)
def test_no_reason_is_in_jargon(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for value in WORDS:
        monkeypatch.setenv(f"DAGUERRE_{name.upper()}", value)
        reason = ""
        try:
            load()
        except SettingsError as error:
            reason = str(error)
        assert JARGON.search(reason) is None, reason
        assert not reason or reason.startswith(f"DAGUERRE_{name.upper()}: ")
        assert len(reason) < 300


@pytest.mark.parametrize("words", [["serve", "--port", "99999"], ["up", "--port", "x"], ["serve", "--processes", "0"]])
def test_the_command_line_names_its_option(words: list[str]) -> None:
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 2
    assert f"Invalid value for '{words[1]}'" in result.output
    assert JARGON.search(result.output.replace("is not a valid integer range", "")) is None
