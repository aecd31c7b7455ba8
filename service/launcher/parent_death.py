"""Become a program that does not outlive its parent: `leash.py PARENT SIGNAL USER PROGRAM [ARGUMENT…]`.

PARENT is a process id, USER `uid:gid` or `-`. This runs as a script between fork and exec, and not as Popen's
`preexec_fn`, which may deadlock where the parent has threads, and of which Python 3.12 warns there.
"""

from __future__ import annotations

import ctypes  # here, since the other user may not be able to read the library
import os
import signal
import sys
import time

_PR_SET_PDEATHSIG = 1


def tie_to(parent: int, number: int) -> None:
    """Have this process sent signal `number` when `parent` ends, however it ends."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, number) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
    elif os.fork() == 0:
        watch(parent, number)
    if os.getppid() != parent:  # it ended before the signal was asked for
        sys.exit(0)


def watch(parent: int, number: int) -> None:
    """Where no kernel call does it (macOS): a child that looks at both every half second, then ends."""
    program = os.getppid()
    os.setsid()
    os.closerange(0, 256)  # not one descriptor of the program may be held open here
    while os.getppid() == program:
        try:
            os.kill(parent, 0)
        except ProcessLookupError:
            os.kill(program, number)
            break
        except PermissionError:
            pass  # another user's, so it lives
        time.sleep(0.5)
    os._exit(0)


def main(parent: str, number: str, user: str, *argv: str) -> None:
    if user != "-":
        uid, gid = map(int, user.split(":"))
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    tie_to(int(parent), int(number))  # after the change of user, which clears the death signal
    try:
        os.execv(argv[0], argv)  # noqa: S606  there is no shell to mean
    except OSError as error:
        sys.exit(f"{argv[0]}: {error.strerror}")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    main(*sys.argv[1:])
