"""The one listening socket of all API processes.

The parent opens it and the processes inherit it. With one socket per process (SO_REUSEPORT), a process that ends would
reset the connections that its own socket had not accepted yet.
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

# As many as the system allows: its own maximum (on Linux somaxconn, usually 4096) is lower.
_BACKLOG = 65_535


class Response(NamedTuple):
    """An HTTP response. `status` is 0 if the server did not respond."""

    status: int
    body: str


def bind(host: str, port: int, *, retry_s: float = 0) -> socket.socket:
    """Returns a listening socket.

    A port in use is retried for `retry_s`, because processes of a killed `up` may still be stopping. Raises StartError
    if the address cannot be used.
    """
    deadline = time.monotonic() + retry_s
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):  # e.g. a label of more than 63 characters
        raise StartError(f"{host} is not an address to listen on: choose another one with --host") from None
    family, _, _, _, address = infos[0]
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
            raise StartError(_explain(host, port, error)) from None
        return listener


def local_url(listener: socket.socket) -> str:
    """Returns the URL at which clients on this machine reach the socket."""
    host, port = listener.getsockname()[:2]
    host = _loopback(host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def get(listener: socket.socket, path: str) -> Response:
    host, port = listener.getsockname()[:2]
    return get_from(host, port, path)


def get_from(host: str, port: int, path: str) -> Response:
    """Sends a GET to the server on this address of this machine."""
    connection = http.client.HTTPConnection(_loopback(host), port, timeout=2)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", path)
        response = connection.getresponse()
        return Response(response.status, response.read(500).decode(errors="replace"))
    return Response(0, "")


def _loopback(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  compared, not bound


def _explain(host: str, port: int, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"Port {port} on {host} is in use: stop the program that uses it, or choose another one with --port"
        case errno.EACCES:
            return f"Port {port} is reserved for root: choose 1024 or higher with --port"
        case errno.EADDRNOTAVAIL:
            return f"{host} is not an address of this machine: choose another one with --host"
        case _:
            return f"Cannot listen on {host}, port {port}: {os.strerror(error.errno or 0).lower()}"
