"""Turns errors of a dependency into short reasons.

`/readyz` shows reasons to anyone, so they never contain the text of the error: no host, user, path or password.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Mapping, Sequence

import asyncpg
from redis import exceptions as redis_errors
from redis.asyncio.sentinel import MasterNotFoundError

TIMED_OUT = "it does not answer in time"
_LOST = "the connection was lost"
_UNREACHABLE = "it cannot be reached"
_FULL = "its memory is full (see its maxmemory), and it evicts nothing"
_NOT_PERMITTED = "its user may not use Daguerre's keys, channels or commands (see its ACL)"


class Unready(Exception):
    """A dependency responds, but an upload would fail. The message is the reason, and is public."""


# The first match applies. asyncpg has a class for each SQLSTATE of PostgreSQL.
_DATABASE: Sequence[tuple[type[Exception], str]] = (
    (asyncpg.InvalidPasswordError, "the user or the password is wrong"),
    (asyncpg.InvalidAuthorizationSpecificationError, "it does not admit this user (see its pg_hba.conf)"),
    (asyncpg.InvalidCatalogNameError, "there is no database of that name"),
    (asyncpg.TooManyConnectionsError, "it has no connection left (see its max_connections)"),
    (asyncpg.DiskFullError, "its disk is full"),
    (asyncpg.OutOfMemoryError, "it is out of memory"),
    (asyncpg.ReadOnlySQLTransactionError, "it is read-only"),
    (asyncpg.CannotConnectNowError, "it is starting or stopping"),
    (asyncpg.AdminShutdownError, "it is stopping"),
    (asyncpg.CrashShutdownError, "it is restarting after a crash"),
    (asyncpg.QueryCanceledError, "it cancelled a statement"),
    (asyncpg.InsufficientPrivilegeError, "its user may not use Daguerre's tables"),
    (asyncpg.UndefinedTableError, "it lacks tables: run `daguerre schema`"),
    (asyncpg.UndefinedColumnError, "its tables are of another version: run `daguerre schema upgrade`"),
    (asyncpg.UndefinedFunctionError, "its tables are of another version: run `daguerre schema upgrade`"),
    (asyncpg.ObjectNotInPrerequisiteStateError, "it accepts no connections to this database"),
    (asyncpg.PostgresSystemError, "it cannot read or write its files"),
    (asyncpg.PostgresConnectionError, _LOST),
    (asyncpg.TargetServerAttributeNotMatched, "no server has the wanted target_session_attrs"),
    (asyncpg.ClientConfigurationError, "its URL cannot be used"),
    (asyncpg.InterfaceError, _LOST),
    (asyncpg.InternalClientError, _LOST),
    (asyncpg.PostgresError, "it refuses a statement"),
)

_QUEUE: Sequence[tuple[type[Exception], str]] = (
    (MasterNotFoundError, "its sentinels name no primary, or none of them can be used"),
    (redis_errors.OutOfMemoryError, _FULL),
    (redis_errors.ReadOnlyError, "it is a read-only replica"),
    (redis_errors.AuthenticationError, "the user or the password is wrong or missing"),
    (redis_errors.AuthenticationWrongNumberOfArgsError, "it knows no users, or needs another kind of password"),
    (redis_errors.NoPermissionError, _NOT_PERMITTED),
    (redis_errors.BusyLoadingError, "it is loading its data"),
    (redis_errors.MasterDownError, "it is a replica without its primary"),
    (redis_errors.ClusterError, "it is a cluster, which is not supported"),
    (redis_errors.MovedError, "it is a cluster, which is not supported"),
    (redis_errors.TimeoutError, TIMED_OUT),
)
# Errors for which redis-py has no class, by words of the message. Errors in scripts are only recognised by their
# message, too.
_QUEUE_WORDS: Mapping[str, str] = {
    "OOM ": _FULL,
    "MISCONF": "it cannot save its data to its disk, and refuses writes",
    "READONLY": "it is a read-only replica",
    "NOREPLICAS": "it has too few replicas, and refuses writes",
    "DB index is out of range": "it has no database of that number",
    "max number of clients": "it has no connection left (see its maxclients)",
    "ACL": _NOT_PERMITTED,
    "can't run this command": _NOT_PERMITTED,
    "unknown command": "it lacks a command (Redis 7.0 or newer, or Valkey, is needed)",
    "cluster mode": "it is a cluster, which is not supported",
    "BUSY": "a script keeps it busy",
}

_SYSTEM: Mapping[int | None, str] = {
    errno.ECONNREFUSED: "nothing listens at its address",
    errno.EHOSTUNREACH: "there is no route to its address",
    errno.ENETUNREACH: "there is no route to its address",
    errno.ETIMEDOUT: TIMED_OUT,
    errno.ENOENT: "its socket does not exist",
    errno.EACCES: "its socket may not be opened by this user",
    errno.EPERM: "its socket may not be opened by this user",
    errno.ECONNRESET: _LOST,
    errno.EPIPE: _LOST,
    errno.EMFILE: "this process has no open file left (see ulimit -n)",
    errno.ENFILE: "this machine has no open file left",
}

# By OpenSSL's name of the error. The other side sends an alert.
_TLS: Mapping[str | None, str] = {
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not trusted (see sslrootcert and ssl_ca_certs)",
    "WRONG_VERSION_NUMBER": "it offers no TLS",
    "RECORD_LAYER_FAILURE": "it offers no TLS",  # WRONG_VERSION_NUMBER since OpenSSL 3.2
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it requires a certificate of its clients",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "it requires a certificate of its clients, or another version of TLS",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not trust this client's certificate",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it does not trust this client's certificate",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it does not trust this client's certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "this client's certificate has expired",
    "TLSV1_ALERT_PROTOCOL_VERSION": "it requires another version of TLS",
}
# By OpenSSL's code (X509_V_ERR_…).
_CERTIFICATE: Mapping[int, str] = {
    9: "its certificate is not yet valid",
    10: "its certificate has expired",
    62: "its certificate is for another host",
    64: "its certificate is for another host",
}

_STORAGE: Mapping[int | None, str] = {
    errno.ENOSPC: "its disk is full",
    errno.EDQUOT: "its disk quota is used up",
    errno.EROFS: "its disk is read-only",
    errno.ENOENT: "its folders are missing: its disk may not be mounted",
    errno.ENODEV: "its disk is not mounted, or another one is",
    errno.ENOTDIR: "a file is in place of a folder",
    errno.EACCES: "this user may not write to it",
    errno.EPERM: "this user may not write to it",
    errno.EIO: "its disk fails to read or write",
    errno.ESTALE: "its disk, over the network, was lost",
    errno.ENOTCONN: "its disk, over the network, was lost",
    errno.EHOSTDOWN: "its disk, over the network, was lost",
    errno.ETIMEDOUT: TIMED_OUT,
    errno.EKEYREJECTED: "the object store refuses the credentials, or what they may do",
    errno.ENXIO: "the bucket does not exist",
    errno.ECOMM: "the object store does not respond",
    errno.EMFILE: _SYSTEM[errno.EMFILE],
    errno.ENFILE: _SYSTEM[errno.ENFILE],
    errno.EAGAIN: "the system has no thread left to wait for its disk",
}


def explain_database(error: BaseException) -> str:
    """Returns the reason for an error of asyncpg or of a check."""
    return _explain(error, _DATABASE) or _explain_system(error)


def explain_queue(error: BaseException) -> str:
    """Returns the reason for an error of redis-py or of a check."""
    reason = _explain(error, _QUEUE)
    if reason is None and isinstance(error, redis_errors.RedisError):
        reason = next((reason for words, reason in _QUEUE_WORDS.items() if words in str(error)), None)
    if reason is None and isinstance(error, redis_errors.ConnectionError):
        cause = error.__cause__ or error.__context__  # redis-py wraps the error of the system or the server
        return explain_queue(cause) if isinstance(cause, OSError | redis_errors.RedisError) else _LOST
    if reason is None and isinstance(error, redis_errors.RedisError):
        return "it refuses a command"
    return reason or _explain_system(error)


def explain_storage(error: BaseException) -> str:
    """Returns the reason for an error of the system or of a check."""
    if isinstance(error, Unready):
        return str(error)
    number = error.errno if isinstance(error, OSError) else None
    if number is None:
        return TIMED_OUT if isinstance(error, TimeoutError) else "it cannot be used"
    return _STORAGE.get(number) or os.strerror(number).lower()


def _explain(error: BaseException, reasons: Sequence[tuple[type[Exception], str]]) -> str | None:
    if isinstance(error, Unready):
        return str(error)
    return next((reason for kind, reason in reasons if isinstance(error, kind)), None)


def _explain_system(error: BaseException) -> str:
    """Explains errors of connections. For several addresses of a host, asyncio raises one OSError without an errno."""
    if isinstance(error, socket.gaierror):
        return "the name of its host is unknown"
    if isinstance(error, ssl.SSLError):
        return _explain_tls(error)
    if "rejected SSL upgrade" in str(error):  # asyncpg's ConnectionError
        return _TLS["WRONG_VERSION_NUMBER"]
    if isinstance(error, TimeoutError):
        return TIMED_OUT
    if isinstance(error, RuntimeError):  # from uvloop, for a connection that is lost between its check and a write
        return _LOST
    return _SYSTEM.get(error.errno, _UNREACHABLE) if isinstance(error, OSError) else _UNREACHABLE


def _explain_tls(error: ssl.SSLError) -> str:
    reason = _CERTIFICATE.get(error.verify_code) if isinstance(error, ssl.SSLCertVerificationError) else None
    return reason or _TLS.get(error.reason) or "no encrypted connection can be made"
