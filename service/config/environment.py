"""The `DAGUERRE_*` variables of the environment: which are settings, and which are somebody else's."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from service.spelling import find_nearest

PREFIX = "DAGUERRE_"

# What `./run`, compose.yaml and the tests read, and no process of Daguerre.
OTHERS = frozenset({"COMMAND", "PUBLISH", "DATABASE_PASSWORD", "TEST_REQUIRE"})

# What Kubernetes gives every container about each Service whose name begins with "daguerre", such as `daguerre` or
# `daguerre-metrics` (its documentation, "Service": "Environment variables"). A Service has no say in these names.
_SERVICE = re.compile(r"(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_PORT = re.compile(r"(\w+_)?PORT")
_PORT_VALUE = re.compile(r"(tcp|udp|sctp)://.*")


def is_of_kubernetes(name: str, value: str) -> bool:
    """Returns whether Kubernetes set the variable. DAGUERRE_PORT may be its own or the setting: the value decides.

    `name` is upper case and without the prefix.
    """
    if _SERVICE.fullmatch(name):
        return True
    return _PORT.fullmatch(name) is not None and _PORT_VALUE.fullmatch(value) is not None


def select(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables with the prefix, in upper case and without it, but for those of Kubernetes."""
    ours = {
        name.upper().removeprefix(PREFIX): value
        for name, value in environment.items()
        if name.upper().startswith(PREFIX)
    }
    return {name: value for name, value in ours.items() if not is_of_kubernetes(name, value)}


def find_unknown(environment: Mapping[str, str], settings: Collection[str]) -> str | None:
    """Returns a sentence on the first variable that is no setting, with the nearest one; None if there is none.

    `settings` are the names in upper case, without the prefix.
    """
    for name in sorted(select(environment).keys() - set(settings) - OTHERS):
        nearest = find_nearest(name, settings)
        advice = "README.md lists the settings" if nearest is None else f"did you mean {PREFIX}{nearest}?"
        shown = name if name.isascii() and name.isprintable() and len(name) <= 64 else f"{ascii(name)[1:65]}…"
        return f"{PREFIX}{shown}: there is no such setting; {advice}"
    return None
