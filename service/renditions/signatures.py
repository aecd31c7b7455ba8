"""Signed URLs: whoever holds a signing key decides what is shown, and until when.

`signature` is the last parameter of the URL: the HMAC-SHA256 of all that is sent before it, path and query, in
base64url without padding. docs/signed-urls.md has it in other languages.
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

# What browsers and HTTP libraries send as it stands. The rest they would encode, the apostrophe of a query included.
_SENT_AS_IT_STANDS = re.compile(r"(?:[A-Za-z0-9._~!$&()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*")

_UNIX_TIME = re.compile(r"[0-9]{1,11}")


def sign(target: str, secret: str, *, expires: int | None = None) -> str:
    """A path with its query, or an http or https URL, of which scheme and host are not signed. It works until
    `expires`, a Unix time.

    Raises ValueError, with a sentence for the user, where the result could not be verified.
    """
    match = _URL.fullmatch(target)
    if match is None:
        raise ValueError("Only a path that begins with one /, or an http or https URL with a path, can be signed.")
    if "#" in target:
        raise ValueError("A fragment is never sent, so it cannot be signed; leave out # and what follows.")
    if _SENT_AS_IT_STANDS.fullmatch(match["target"]) is None:
        raise ValueError("The URL has characters that are sent in another form; percent-encode them first.")
    path, parameters = _split(match["target"])
    names = [_name(parameter) for parameter in parameters]
    if "signature" in names:
        raise ValueError("The URL is signed already.")
    if "expires" in names:
        raise ValueError("The URL has a parameter expires; leave it out, and give the time beside the URL.")
    if expires is not None:
        if _UNIX_TIME.fullmatch(str(expires)) is None:
            raise ValueError("A URL expires at a Unix time: whole seconds, of at most 11 digits.")
        parameters.append(f"expires={expires}")
    signature = _signature(_join(path, parameters), secret)
    return (match["origin"] or "") + _join(path, [*parameters, f"signature={signature}"])


def is_signed(raw_target: str) -> bool:
    """Whether there is a signature, right or wrong."""
    return "signature" in map(_name, _split(raw_target)[1])


def verify(raw_target: str, secrets: Sequence[str], *, now: float) -> int | None:
    """Hold path and query, as they were received, against the secrets.

    Answers the Unix time beyond which the reply must not be kept; None if there is none. Raises `signature-invalid` and
    `signature-expired`.
    """
    path, parameters = _split(raw_target)
    key, _, given = parameters.pop().partition("=") if parameters else ("", "", "")
    if key != "signature" or "signature" in map(_name, parameters):
        raise ServiceError("signature-invalid", "A signed URL has one parameter signature, and it is the last.")
    signed = _join(path, parameters)
    if not any(hmac.compare_digest(_signature(signed, secret).encode(), _sent(given)) for secret in secrets):
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
        raise ServiceError("signature-invalid", "Send one expires, a Unix time: whole seconds, of at most 11 digits.")
    return int(time)


def _signature(signed: str, secret: str) -> str:
    digest = hmac.digest(secret.encode(), _sent(signed), hashlib.sha256)
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _split(target: str) -> tuple[str, list[str]]:
    """Path and parameters, as they are sent; a query without any is none."""
    path, _, query = target.partition("?")
    return path, query.split("&") if query else []


def _join(path: str, parameters: Sequence[str]) -> str:
    return f"{path}?{'&'.join(parameters)}" if parameters else path


def _name(parameter: str) -> str:
    return unquote_plus(parameter.partition("=")[0])


def _sent(text: str) -> bytes:
    """The bytes on the wire: what is not UTF-8 reaches an application as surrogates."""
    return text.encode(errors="surrogateescape")
