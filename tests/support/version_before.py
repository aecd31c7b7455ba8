"""The code of the version before this one, from the history of the repository."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from service.schema.definition import Schema

_ROOT = Path(__file__).parents[2]


class HistoryMissing(Exception):
    """The history is not there, or too short. The message says why."""


def find_commit() -> str:
    """Returns the last commit of this branch whose schema.sql has a lower version than the one of the working tree.

    Merged branches do not count, because only the branch into which they are merged was ever deployed. Raises
    HistoryMissing.
    """
    try:
        commits = _git("log", "--first-parent", "--format=%H", "HEAD", "--", "schema.sql").split()
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise HistoryMissing(f"the history cannot be read: {error}") from None
    current, raised_by = Schema.load().version, None
    for commit in commits:
        if _find_version(commit) < current:
            return "HEAD" if raised_by is None else f"{raised_by}^"
        raised_by = commit
    raise HistoryMissing(f"no commit has a schema before {current}: this clone may be shallow")


def _find_version(commit: str) -> int:
    try:
        return Schema.parse(_git("show", f"{commit}:schema.sql")).version
    except AssertionError:  # the first ones have no number
        return 1


def check_out(commit: str, folder: Path) -> None:
    """Writes all files of the commit to a new folder. Neither the working tree nor the index is touched."""
    folder.mkdir()
    index = folder / "index"
    _git("read-tree", commit, index=index)
    _git("checkout-index", "--all", f"--prefix={folder}/", index=index)
    index.unlink()


def run(folder: Path, *arguments: str, **environment: str) -> str:
    """Runs a command of `daguerre` with the code in this folder. Returns its stdout."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "service.cli", *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _git(*arguments: str, index: Path | None = None) -> str:
    environment = {**os.environ, **({"GIT_INDEX_FILE": str(index)} if index else {})}
    # The clone may belong to another user, e.g. in CI.
    command = ["git", "-c", "safe.directory=*", "-C", str(_ROOT), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout
