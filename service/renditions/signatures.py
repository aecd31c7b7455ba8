"""Signed URLs: the holder of a signing key decides what is shown, and until when.

`signature` is the last parameter of the URL: the HMAC-SHA256 of the path and the query before it, as they are sent, in
base64url without padding. docs/signed-urls.md has implementations in other languages.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Sequence
from urllib.parse import unquote_plus

from service.errors import ServiceError

_URL = re.compile(r"(?P<origin>https?://[^/?#\s]+)?(?P<target>/(?!/).*)", re.IGNORECASE)

# Characters that browsers and HTTP libraries send unchanged. They encode all others, e.g. the apostrophe of a query.
_SENT_UNCHANGED = re.compile(r"(?:[A-Za-z0-9._~!$&()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*")

_UNIX_TIME = re.compile(r"[0-9]{1,11}")


def sign(target: str, secret: str, *, expires: int | None = None) -> str:
    """Returns `target` with a signature: a path with its query, or an http or https URL, whose scheme and host are not
    part of the signature. It is valid until `expires`, a Unix time.

    Raises ValueError, with a sentence for the user, if the result could not be verified.
    """
    match = _URL.fullmatch(target)
    if match is None:
        raise ValueError("Only a path that begins with one /, or an http or https URL with a path, can be signed.")
    if "#" in target:
        raise ValueError("A fragment is never sent, so it cannot be signed; leave out # and what follows.")
    if _SENT_UNCHANGED.fullmatch(match["target"]) is None:
        raise ValueError("The URL has characters that clients would encode; percent-encode them first.")
    path, parameters = _split(match["target"])
    names = [_name(parameter) for parameter in parameters]
    if "signature" in names:
        raise ValueError("The URL is signed already.")
    if "expires" in names:
        raise ValueError("The URL has a parameter expires already; leave it out, and pass the time separately.")
    if expires is not None:
        if _UNIX_TIME.fullmatch(str(expires)) is None:
            raise ValueError("The expiry must be a Unix time: whole seconds, of at most 11 digits.")
        parameters.append(f"expires={expires}")
    signature = _signature(_join(path, parameters), secret)
    return (match["origin"] or "") + _join(path, [*parameters, f"signature={signature}"])


def is_signed(raw_target: str) -> bool:
    """Returns whether the target has a signature, valid or not."""
    return "signature" in map(_name, _split(raw_target)[1])


def verify(raw_target: str, secrets: Sequence[str], *, now: float) -> int | None:
    """Verifies path and query, as they were received, against the secrets.

    Returns the Unix time at which the URL expires, or None. Raises `signature-invalid` and `signature-expired`.
    """
    path, parameters = _split(raw_target)
    name, _, signature = parameters.pop().partition("=") if parameters else ("", "", "")
    if name != "signature" or "signature" in map(_name, parameters):
        raise ServiceError("signature-invalid", "signature must be given once, as the last parameter.")
    signed = _join(path, parameters)
    if not any(hmac.compare_digest(_signature(signed, secret).encode(), _to_wire(signature)) for secret in secrets):
        raise ServiceError("signature-invalid")
    expiry = _expiry(parameters)
    if expiry is not None and now >= expiry:
        raise ServiceError("signature-expired")
    return expiry


def _expiry(parameters: Sequence[str]) -> int | None:
    times = [parameter for parameter in parameters if _name(parameter) == "expires"]
    if not times:
        return None
    _, _, time = times[0].partition("=")
    if len(times) > 1 or _UNIX_TIME.fullmatch(time) is None:
        raise ServiceError("signature-invalid", "expires must be given once: a Unix time of at most 11 digits.")
    return int(time)


def _signature(signed: str, secret: str) -> str:
    digest = hmac.digest(secret.encode(), _to_wire(signed), hashlib.sha256)
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _split(target: str) -> tuple[str, list[str]]:
    """Returns the path and the parameters, as they are sent."""
    path, _, query = target.partition("?")
    return path, query.split("&") if query else []


def _join(path: str, parameters: Sequence[str]) -> str:
    return f"{path}?{'&'.join(parameters)}" if parameters else path


def _name(parameter: str) -> str:
    return unquote_plus(parameter.partition("=")[0])


def _to_wire(text: str) -> bytes:
    """Returns the bytes on the wire. Those that are not UTF-8 reach an application as surrogates."""
    return text.encode(errors="surrogateescape")
