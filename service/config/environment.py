"""The `DAGUERRE_*` variables of the environment: which ones are settings, and which ones belong to other programs."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from service.spelling import find_nearest

PREFIX = "DAGUERRE_"

# Variables that only `./run`, compose.yaml and the tests read.
OTHERS = frozenset({"COMMAND", "PUBLISH", "DATABASE_PASSWORD", "OBJECT_STORE_PASSWORD", "TEST_REQUIRE"})

# Former names of settings, for which the nearest name would be another setting.
RENAMED = {
    "MAX_AGE_S": "CACHE_MAX_AGE_S",
    "METRICS": "METRICS_DIR",
    "MISS_RATE": "NOT_FOUND_RATE_LIMIT",
    "RENDITIONS": "RENDITIONS_DIR",
    "RENDITION_RATE": "RENDITION_RATE_LIMIT",
}

# Kubernetes gives every container these variables of each Service whose name begins with "daguerre", e.g. `daguerre` or
# `daguerre-metrics` (its documentation, "Service": "Environment variables"). Their names cannot be changed.
_SERVICE = re.compile(r"(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_PORT = re.compile(r"(\w+_)?PORT")
_PORT_VALUE = re.compile(r"(tcp|udp|sctp)://.*")
_MAX_SHOWN_LENGTH = 64


def is_of_kubernetes(name: str, value: str) -> bool:
    """Returns whether Kubernetes set the variable. DAGUERRE_PORT may be its own or the setting: the value decides.

    `name` is upper case and without the prefix.
    """
    if _SERVICE.fullmatch(name):
        return True
    return _PORT.fullmatch(name) is not None and _PORT_VALUE.fullmatch(value) is not None


def select(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables with the prefix, in upper case and without it, except those of Kubernetes."""
    ours = {
        name.upper().removeprefix(PREFIX): value
        for name, value in environment.items()
        if name.upper().startswith(PREFIX)
    }
    return {name: value for name, value in ours.items() if not is_of_kubernetes(name, value)}


def find_unknown(environment: Mapping[str, str], settings: Collection[str]) -> str | None:
    """Returns an error message for the first variable that is not a setting, with the nearest setting; None if all are
    known.

    `settings` are the names in upper case, without the prefix.
    """
    for name in sorted(select(environment).keys() - set(settings) - OTHERS):
        nearest = RENAMED.get(name) or find_nearest(name, settings)
        advice = "docs/configuration.md lists the settings" if nearest is None else f"did you mean {PREFIX}{nearest}?"
        return f"{PREFIX}{_show(name)}: there is no such setting; {advice}"
    return None


def _show(name: str) -> str:
    if name.isascii() and name.isprintable() and len(name) <= _MAX_SHOWN_LENGTH:
        return name
    return f"{ascii(name)[1 : _MAX_SHOWN_LENGTH + 1]}…"
