"""Checks of the URLs of PostgreSQL and Redis.

A URL may contain a password, and these messages are shown to the operator and logged. So they name parameters, hosts
and files, and quote nothing else.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import SplitResult, parse_qs, parse_qsl, urlsplit

from service.config.values import shorten

# Parameters of libpq that asyncpg would send to the server as settings of the session, which refuses them.
_UNSUPPORTED = frozenset(
    {
        *("channel_binding", "connect_timeout", "fallback_application_name", "gssencmode", "hostaddr", "keepalives"),
        *("keepalives_count", "keepalives_idle", "keepalives_interval", "load_balance_hosts", "pgbouncer"),
        *("require_auth", "requirepeer", "sslcertmode", "sslcompression", "sslcrldir", "sslsni", "tcp_user_timeout"),
    }
)


class _FileParameters(NamedTuple):
    """The names of parameters of files: certificates of authorities, of this client, and its key."""

    authorities: str
    certificate: str
    key: str
    password: str


_DATABASE_FILES = _FileParameters("sslrootcert", "sslcert", "sslkey", "sslpassword")
_REDIS_FILES = _FileParameters("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "")


def check_database_url(url: str) -> str:
    """Raises ValueError for a URL that asyncpg could not use."""
    if re.match("postgres(ql)?://", url) is None:
        raise ValueError("must begin with postgresql://")
    parameters = dict(parse_qsl(_check_servers(url).query))
    if unsupported := sorted(_UNSUPPORTED & parameters.keys()):
        raise ValueError(f"{unsupported[0]} is not supported: remove this parameter")
    _check_files(parameters, _DATABASE_FILES)
    return url


def check_redis_url(url: str) -> str:
    """Raises ValueError for a URL that redis-py could not use, or `service.queue.servers` for Sentinel."""
    match = re.match(r"(rediss?|unix|rediss?\+sentinel)://", url)
    if match is None:
        raise ValueError("must begin with redis://, rediss:// or unix://, or with redis+sentinel:// for Sentinel")
    parts = _check_servers(url)
    if "sentinel" in match[1] and re.fullmatch("/[^/]+(/[0-9]*)?", parts.path) is None:
        raise ValueError("must name the primary that the sentinels watch: redis+sentinel://host1,host2/mymaster/0")
    parameters = dict(parse_qsl(parts.query))
    if _REDIS_FILES.key in parameters and _REDIS_FILES.certificate not in parameters:
        raise ValueError(f"{_REDIS_FILES.key} needs {_REDIS_FILES.certificate}")  # redis-py would use neither
    _check_files(parameters, _REDIS_FILES)
    return url


def _check_servers(url: str) -> SplitResult:
    """Checks each server of the URL: `host`, `host:port`, or a folder of sockets, as in PostgreSQL's URLs. The query
    may contain ports as well. Returns the parts of the URL.
    """
    hosts = None
    with suppress(ValueError):  # its message may quote the password
        parts = urlsplit(url)
        hosts = None if _is_cut(parts) else _list_hosts(parts)
    if hosts is not None:
        for host in hosts:
            _check_host(host)
        return parts
    raise ValueError(
        "must be like scheme://user:password@host:port/name?parameter=value, with a port up to 65535. In a user or a"
        " password, write @ as %40, : as %3A, / as %2F, ? as %3F, # as %23 and % as %25"
    )


def _list_hosts(parts: SplitResult) -> list[str]:
    """Raises ValueError for a port that is none, and for a parameter without a value."""
    for ports in parse_qs(parts.query).get("port", []):
        for port in ports.split(","):
            _ = urlsplit(f"//host:{port}").port
    if parts.query:
        parse_qsl(parts.query, strict_parsing=True)
    servers = [urlsplit(f"//{server}") for server in parts.netloc.rpartition("@")[2].split(",")]
    for server in servers:
        _ = server.port
    return [server.hostname for server in servers if server.hostname]


def _is_cut(parts: SplitResult) -> bool:
    """Returns whether a character of a password seems to have ended it: what follows has the @ before the host."""
    credentials, _, _ = parts.netloc.rpartition("@")
    return "@" in credentials or bool(parts.fragment) or (not credentials and "@" in parts.path + parts.query)


def _check_host(name: str) -> None:
    if "%" in name:  # a folder of sockets
        return
    try:
        name.encode("idna")
    except UnicodeError:
        raise ValueError(f"{shorten(name)!r} is not the name of a host") from None


def _check_files(parameters: Mapping[str, str], names: _FileParameters) -> None:
    """Loads the files as the connections will."""
    authorities, certificate, key = (parameters.get(name) for name in names[:3])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if authorities is not None:
        _require_readable(names.authorities, authorities)
        try:
            context.load_verify_locations(authorities)
        except ssl.SSLError:
            raise ValueError(f"{names.authorities}: {authorities} holds no certificate in PEM format") from None
    if certificate is None:
        return
    _require_readable(names.certificate, certificate)
    if key is not None:
        _require_readable(names.key, key)
    try:
        context.load_cert_chain(certificate, key, password=parameters.get(names.password, ""))
    except ssl.SSLError:
        reason = f"{names.certificate} and {names.key} must be a certificate and its key in PEM format"
        raise ValueError(reason) from None


def _require_readable(name: str, path: str) -> None:
    try:
        with open(path, "rb"):  # noqa: PTH123 - it may be any text, also an empty one
            pass
    except OSError as error:
        raise ValueError(f"{name}: {path} cannot be read: {(error.strerror or str(error)).lower()}") from None
