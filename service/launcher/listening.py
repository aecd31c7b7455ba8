"""The one listening socket of all API processes.

The parent opens it and they inherit it: with a socket each (SO_REUSEPORT), one that ends resets the clients that
were connected to its own and not yet accepted.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import socket
import time
from typing import NamedTuple

from service.launcher import StartError

_BACKLOG = 1024


class Answer(NamedTuple):
    """Status 0 if there was none."""

    status: int
    body: str


def bind(host: str, port: int, *, patience_s: float = 0) -> socket.socket:
    """`patience_s` is how long a port may be in use by what the last `up` left."""
    deadline = time.monotonic() + patience_s
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):  # e.g. a label of more than 63 characters
        raise StartError(f"{host} is no address to listen on: name another one with --host") from None
    family, _, _, _, address = found[0]
    while True:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            raise StartError(_refusal(host, port, error)) from None
        return listener


def local_url(listener: socket.socket) -> str:
    """Where a client on this machine reaches it."""
    host, port = listener.getsockname()[:2]
    host = _reachable(host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def get(listener: socket.socket, path: str) -> Answer:
    host, port = listener.getsockname()[:2]
    return get_from(host, port, path)


def get_from(host: str, port: int, path: str) -> Answer:
    """Ask what listens on that address of this machine."""
    connection = http.client.HTTPConnection(_reachable(host), port, timeout=2)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", path)
        answer = connection.getresponse()
        return Answer(answer.status, answer.read(500).decode(errors="replace"))
    return Answer(0, "")


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  compared, not bound


def _refusal(host: str, port: int, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"Port {port} on {host} is in use: stop what listens there, or choose another one with --port"
        case errno.EACCES:
            return f"Port {port} is for root alone: choose one from 1024 on with --port"
        case errno.EADDRNOTAVAIL:
            return f"{host} is not an address of this machine: name another one with --host"
        case _:
            return f"Cannot listen on {host}, port {port}: {os.strerror(error.errno or 0).lower()}"
