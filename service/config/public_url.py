"""Checks that the public URL leads to the address and port on which the service listens."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

import structlog

from service.config.settings import Settings

log = structlog.get_logger("service.serve")


def warn_if_misleading(settings: Settings, listener: socket.socket) -> None:
    """Logs a warning if clients would be sent to another port than the listener's."""
    host, port = listener.getsockname()[:2]
    if is_misleading(settings, host, port):
        log.warning(
            "public_url.other_port",
            public_url=settings.public_url,
            port=port,
            setting="DAGUERRE_PUBLIC_URL",
        )


def is_misleading(settings: Settings, host: str, port: int) -> bool:
    """Returns whether the public URL names this machine with another port than that of the listener.

    The default URL is meant for the default port. A URL that was set may be that of a proxy, unless it is a plain http
    URL of the address on which the service listens: a proxy has TLS, another name, or no port in its URL. A container
    listens on all addresses, and its port may be published as another one.
    """
    try:
        url = urlsplit(settings.public_url)
        public_port = url.port
    except ValueError:
        return False
    if public_port is None or public_port == port:
        return False
    if "public_url" not in settings.model_fields_set:
        return True
    public_host = url.hostname or ""
    return url.scheme == "http" and (public_host == host or (_is_loopback(public_host) and _is_loopback(host)))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
