"""The servers that clients' URLs name: asked for a picture, and what goes wrong told as an error of the API."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version

import aiohttp
from aiohttp import ClientHandlerType, ClientRequest, hdrs
from aiohttp.abc import AbstractResolver
from yarl import URL

from service.addresses import AllowedAddresses
from service.downloads.connections import AddressRefused, GuardedResolver, guarded_connector
from service.errors import ServiceError

MAX_URL_LENGTH = 8000
_QUOTED = re.compile(r"[!#-;=?-\[\]_a-z~]+")
_MAX_REDIRECTS = 5
_READ_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class OriginTimeouts:
    """For resolving the name and connecting, TLS included; for the first byte, and every later pause; for it all."""

    connect_s: float = 5
    read_s: float = 10
    total_s: float = 30


class _CredentialsRefused(Exception):
    """A redirect leads to a URL with a user name or a password."""


async def _refuse_credentials(request: ClientRequest, handler: ClientHandlerType) -> aiohttp.ClientResponse:
    """aiohttp's middleware, which each request passes, the redirected ones too.

    aiohttp makes a header of what a URL holds before its host. Here no URL may hold it, neither the client's nor one
    that a redirect names: curl sends it, browsers keep it from scripts across origins, and no public picture needs it.
    """
    if hdrs.AUTHORIZATION in request.headers:
        raise _CredentialsRefused
    return await handler(request)


class OriginFailure(Exception):
    """What went wrong, by the name of its kind alone: libraries' own errors quote the URL, which may hold secrets."""


def parse_url(text: str) -> URL:
    """An absolute http or https URL without credentials. Raises `invalid-url`."""
    text = text.strip()
    if len(text) > MAX_URL_LENGTH:
        raise ServiceError("invalid-url", f"The URL has more than {MAX_URL_LENGTH} characters.")
    try:
        # Quoted anew only if it must be: a URL that is signed as a string would not be the same any more.
        url = URL(text, encoded=_QUOTED.fullmatch(text) is not None)
        if not text.isprintable() or url.scheme not in ("http", "https") or not url.host or not url.port:
            raise ServiceError("invalid-url")
        if url.user is not None or url.password is not None:
            raise ServiceError("invalid-url", "The URL holds a user name or a password; send one without.")
    except ValueError as error:
        raise ServiceError("invalid-url") from OriginFailure(type(error).__name__)
    return url


class Origin:
    """An answer whose headers have arrived."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    @property
    def length(self) -> int | None:
        """The declared length of the body; None where it tells nothing: of a compressed body, or 0."""
        return None if "Content-Encoding" in self._response.headers else self._response.content_length or None

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives, decompressed. Raises `origin-refused`, `origin-too-slow`; `not-an-image` if empty."""
        empty = True
        with _as_origin_errors():
            async for chunk in self._response.content.iter_any():
                empty = False
                yield chunk
        if empty:
            raise ServiceError("not-an-image")


class Origins:
    """Nothing of the client's request travels to an origin: no header, no key, no cookie; and no proxy is asked."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        allowed: AllowedAddresses,
        *,
        lookups: int,
        timeouts: OriginTimeouts = OriginTimeouts(),
        resolver: AbstractResolver | None = None,
    ) -> AsyncIterator[Origins]:
        """`lookups` names are resolved at once; more are `busy`. Connections end with the block."""
        resolver = resolver or GuardedResolver(allowed, lookups)
        session = aiohttp.ClientSession(
            connector=guarded_connector(allowed, resolver),
            timeout=aiohttp.ClientTimeout(
                total=timeouts.total_s, connect=timeouts.connect_s, sock_read=timeouts.read_s
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            middlewares=(_refuse_credentials,),
            read_bufsize=_READ_BYTES,
            headers={
                "User-Agent": f"Daguerre/{version('daguerre')}",
                "Accept": "image/*, */*;q=0.5",
                "Accept-Encoding": "identity",
            },
        )
        try:
            async with session:
                yield cls(session)
        finally:
            await resolver.close()

    @asynccontextmanager
    async def get(self, url: URL) -> AsyncIterator[Origin]:
        """Follow up to 5 redirects, each to an address that is checked like the first.

        Raises `url-not-allowed`, `origin-not-found`, `origin-refused`, `origin-too-slow`, `busy`.
        """
        with _as_origin_errors():
            # aiohttp refuses the redirect whose number is `max_redirects`.
            response = await self._session.get(url, max_redirects=_MAX_REDIRECTS + 1)
        async with response:
            if response.status in (404, 410):
                raise ServiceError("origin-not-found")
            if response.status != 200:
                raise ServiceError("origin-refused", f"The URL's server answered with the status {response.status}.")
            yield Origin(response)


@contextmanager
def _as_origin_errors() -> Iterator[None]:
    try:
        yield
    except AddressRefused:
        raise ServiceError("url-not-allowed") from None
    except _CredentialsRefused:
        raise ServiceError("origin-refused", "The URL redirects to one with a user name or a password.") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:  # time-outs are OSErrors
        raise _translate(error) from OriginFailure(type(error).__name__)


def _translate(error: Exception) -> ServiceError:
    match error:
        case TimeoutError():
            return ServiceError("origin-too-slow")
        case aiohttp.RedirectClientError():
            return ServiceError("origin-refused", "The URL redirects to what is no http or https URL.")
        case aiohttp.TooManyRedirects():
            return ServiceError("origin-refused", f"The URL redirects more than {_MAX_REDIRECTS} times.")
        case aiohttp.InvalidURL():
            return ServiceError("invalid-url")
        case aiohttp.ClientConnectorDNSError():
            return ServiceError("origin-not-found")
        case _:
            return ServiceError("origin-refused")
