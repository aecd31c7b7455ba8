"""Runs a program that ends when its parent ends: `parent_death.py PARENT SIGNAL USER PROGRAM [ARGUMENT…]`.

PARENT is a process id, USER is `uid:gid` or `-`. This is a script that runs between fork and exec. Popen's `preexec_fn`
could deadlock if the parent has threads, and Python 3.12 warns about that.
"""

from __future__ import annotations

import ctypes  # imported before the change of user: the other user may not be able to read the library
import os
import signal
import sys
import time

_PR_SET_PDEATHSIG = 1
_POLL_INTERVAL_S = 0.5


def die_with_parent(parent: int, number: int) -> None:
    """Makes the system send signal `number` to this process when `parent` ends, for any reason."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, number) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
    elif os.fork() == 0:
        watch(parent, number)
    if os.getppid() != parent:  # it ended before the signal was set up
        sys.exit(0)


def watch(parent: int, number: int) -> None:
    """Sends the signal from a forked child on systems without such a kernel call (macOS). Polls both processes."""
    program = os.getppid()
    os.setsid()
    os.closerange(0, 256)  # the program's descriptors must not stay open here
    while os.getppid() == program:
        try:
            os.kill(parent, 0)
        except ProcessLookupError:
            os.kill(program, number)
            break
        except PermissionError:
            pass  # a process of another user, so it is alive
        time.sleep(_POLL_INTERVAL_S)
    os._exit(0)


def main(parent: str, number: str, user: str, *argv: str) -> None:
    if user != "-":
        uid, gid = map(int, user.split(":"))
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    die_with_parent(int(parent), int(number))  # after the change of user, which clears the death signal
    try:
        os.execv(argv[0], argv)  # noqa: S606  no shell is wanted
    except OSError as error:
        sys.exit(f"{argv[0]}: {error.strerror}")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    main(*sys.argv[1:])
