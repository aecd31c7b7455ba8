"""Whether the public URL leads to where this service listens."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

import structlog

from service.config.settings import Settings

log = structlog.get_logger("service.serve")


def warn_if_misleading(settings: Settings, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    if is_misleading(settings, host, port):
        log.warning(
            "public_url.other_port",
            public_url=settings.public_url,
            port=port,
            setting="DAGUERRE_PUBLIC_URL",
        )


def is_misleading(settings: Settings, host: str, port: int) -> bool:
    """Whether images are shown with URLs of this machine's own that name another port.

    The default URL is meant for the default port. A URL that was set may be that of a proxy, unless it is a plain http
    URL of the very address that this service listens on: a proxy has TLS, another name, or no port in its URL. And a
    container listens on all addresses, and may have its port published as another one.
    """
    try:
        url = urlsplit(settings.public_url)
        named = url.port
    except ValueError:
        return False
    if named is None or named == port:
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
