"""The `up` that runs on a data folder: its lock, and the addresses that other commands read from its state file."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from service.config.settings import Settings
from service.config.values import parse_storage
from service.launcher.embedded import EmbeddedError
from service.launcher.process import name_of

LOCK = "lock"


@dataclass(frozen=True, slots=True)
class Instance:
    """`storage` has the environment variables of its object store, if it has one."""

    pid: int
    database_url: str
    redis_url: str
    local_url: str
    public_url: str
    storage: Mapping[str, str] = field(default_factory=dict)

    def storage_settings(self, settings: Settings) -> Settings:
        """Returns the settings with the storage of this instance, whose keys go into the environment."""
        if not self.storage:
            return settings
        os.environ.update(self.storage)
        url = parse_storage(self.storage["DAGUERRE_STORAGE"])
        return settings.model_copy(update={"storage": url, "renditions_dir": None})


def find(data: Path, wait_s: float = 15) -> Instance | None:
    """Returns the `up` that is running on the folder, or None. Waits `wait_s` for one that is starting.

    Raises EmbeddedError if it is still starting after that, or if the folder belongs to another user.
    """
    data = data.absolute()
    deadline = time.monotonic() + wait_s
    while _is_locked(data):
        try:
            return Instance(**json.loads(state_file(data).read_text()))
        except FileNotFoundError:
            if time.monotonic() > deadline:
                raise EmbeddedError(f"The Daguerre that runs on {data} is still starting: try again") from None
        time.sleep(0.1)
    return None


@contextlib.contextmanager
def lock(data: Path) -> Iterator[None]:
    """Holds the lock of the folder. The system releases it when `up` ends, even if it is killed.

    Raises EmbeddedError if another `up` holds it.
    """
    handle = os.open(data / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        for attempt in range(20):  # `find` may hold it for a moment
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == 19:
                    raise EmbeddedError(
                        f"Daguerre is running on {data} already{_describe(data)}: stop it,"
                        " or choose another folder with --data"
                    ) from None
                time.sleep(0.02)
        yield
    finally:
        os.close(handle)


def state_file(data: Path) -> Path:
    """Returns the path of the state file. It is valid only while the lock is held.

    If a new holder of the lock finds one, the last `up` was killed.
    """
    return data / "running.json"


def announce(data: Path, instance: Instance) -> None:
    """Writes the state file atomically and for its owner alone: the addresses may contain passwords."""
    partial = state_file(data).with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(asdict(instance), file)
    partial.replace(state_file(data))


def _describe(data: Path) -> str:
    try:
        instance = Instance(**json.loads(state_file(data).read_text()))
    except OSError:  # still starting
        return ""
    return f" ({instance.local_url}, process {instance.pid})"


def _is_locked(data: Path) -> bool:
    try:
        handle = os.open(data / LOCK, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError:
        raise EmbeddedError(f"{data} belongs to {name_of(data.stat().st_uid)}: run this as that user") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
