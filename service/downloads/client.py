"""The HTTP client for pictures from URLs. Translates errors of origin servers to errors of the API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import aiohttp
from aiohttp import hdrs
from aiohttp.abc import AbstractResolver
from yarl import URL

from service.addresses import AllowedAddresses
from service.downloads.connections import AddressRefused, GuardedResolver, account, guarded_connector
from service.downloads.decoding import DecodingError, decode, parse_codings
from service.downloads.urls import CredentialsInURL, parse_absolute, resolve_redirect
from service.errors import ServiceError
from service.limits.slots import Pace
from service.version import VERSION

MAX_URL_LENGTH = 8000
_REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 5
# The maximum of the status line, and of each header field. aiohttp accepts 8 KB by default, and curl 100 KB.
_MAX_HEADER_BYTES = 64 * 1024
_MIN_TIMEOUT_S = 0.001  # for aiohttp, 0 means no limit
_READ_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class DownloadTimeouts:
    """Time limits of a download.

    `connect_s` is for resolving the name and connecting with TLS, `read_s` for the first byte and each later pause, and
    `total_s` for the whole download. After `read_s` a body also needs the minimum pace of `service.limits.slots`.
    """

    connect_s: float = 5
    read_s: float = 10
    total_s: float = 30


class OriginFailure(Exception):
    """Names the class of a library's error. The error itself may quote the URL, which may hold secrets."""


def parse_url(text: str) -> URL:
    """Returns the URL of a picture, as `service.downloads.urls` parses it. Raises `invalid-url`."""
    if len(text) > MAX_URL_LENGTH:
        raise ServiceError("invalid-url", f"The URL has more than {MAX_URL_LENGTH} characters.")
    try:
        return parse_absolute(text)
    except CredentialsInURL:
        raise ServiceError("invalid-url", "The URL holds a user name or a password; send one without.") from None
    except ValueError as error:
        raise ServiceError("invalid-url") from OriginFailure(type(error).__name__)


class Download:
    """A response whose headers have arrived."""

    def __init__(self, response: aiohttp.ClientResponse, pace: Pace) -> None:
        self._response = response
        self._pace = pace

    @property
    def length(self) -> int | None:
        """The declared length of the body. None if it is unknown or 0, or if the body has a content coding."""
        return None if hdrs.CONTENT_ENCODING in self._response.headers else self._response.content_length or None

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yields the decoded body as it arrives.

        Raises `origin-refused`, `origin-too-slow`, and `not-an-image` for an empty body.
        """
        is_empty = True
        with _origin_errors():
            codings = parse_codings(",".join(self._response.headers.getall(hdrs.CONTENT_ENCODING, [])))
            async for chunk in decode(self._read(), codings):
                is_empty = False
                yield chunk
        if is_empty:
            raise ServiceError("not-an-image")

    async def _read(self) -> AsyncIterator[bytes]:
        """Yields the body as it arrives. Raises TimeoutError if it is slower than the minimum pace."""
        while True:
            self._pace.start_wait()
            async with asyncio.timeout(self._pace.remaining_s):
                chunk = await self._response.content.readany()
            if not chunk:
                return
            self._pace.end_wait(len(chunk))
            yield chunk


class DownloadClient:
    """Downloads from public addresses. It sends no header, key or cookie of the client's request, and uses no proxy."""

    def __init__(self, session: aiohttp.ClientSession, timeouts: DownloadTimeouts) -> None:
        self._session = session
        self._timeouts = timeouts

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        allowed: AllowedAddresses,
        *,
        lookups: int,
        timeouts: DownloadTimeouts = DownloadTimeouts(),
        resolver: AbstractResolver | None = None,
    ) -> AsyncIterator[DownloadClient]:
        """Opens a client whose connections end with the block.

        `lookups` is the maximum number of host names that are resolved at a time. One account cannot use them all, and
        further ones raise `busy`.
        """
        resolver = resolver or GuardedResolver(allowed, lookups)
        session = aiohttp.ClientSession(
            connector=guarded_connector(allowed, resolver),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            read_bufsize=_READ_BYTES,
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
            headers={
                "User-Agent": f"Daguerre/{VERSION}",
                "Accept": "image/*, */*;q=0.5",
                "Accept-Encoding": "identity",
            },
        )
        try:
            async with session:
                yield cls(session, timeouts)
        finally:
            await resolver.close()

    @asynccontextmanager
    async def get(self, url: URL, holder: Hashable = None) -> AsyncIterator[Download]:
        """Sends a GET and follows up to 5 redirects. Each address is checked like the first.

        `holder` is the account that is charged for the lookups of host names.

        Raises `url-not-allowed`, `origin-not-found`, `origin-refused`, `origin-too-slow`, `busy`.
        """
        account.set(holder)
        with _origin_errors():
            response = await self._follow(url)
        async with response:
            if response.status in (404, 410):
                raise ServiceError("origin-not-found")
            if response.status != 200:
                raise ServiceError("origin-refused", f"The URL's server responded with the status {response.status}.")
            yield Download(response, Pace(self._timeouts.read_s))

    async def _follow(self, url: URL) -> aiohttp.ClientResponse:
        """Returns the first response that is not a redirect. aiohttp's own redirects would encode URLs again."""
        deadline = asyncio.get_running_loop().time() + self._timeouts.total_s
        for _ in range(1 + _MAX_REDIRECTS):
            response = await self._session.get(url, allow_redirects=False, timeout=self._timeout(deadline))
            location = response.headers.get(hdrs.LOCATION)
            if response.status not in _REDIRECT_STATUSES or location is None:
                return response
            response.close()
            url = _resolve(url, location)
        raise ServiceError("origin-refused", f"The URL redirects more than {_MAX_REDIRECTS} times.")

    def _timeout(self, deadline: float) -> aiohttp.ClientTimeout:
        remaining_s = deadline - asyncio.get_running_loop().time()
        return aiohttp.ClientTimeout(
            total=max(remaining_s, _MIN_TIMEOUT_S), connect=self._timeouts.connect_s, sock_read=self._timeouts.read_s
        )


def _resolve(url: URL, location: str) -> URL:
    """Returns the target of a redirect. Raises `origin-refused`, also for a URL with credentials.

    No public picture needs credentials: curl sends them, and browsers hide them from scripts of other origins.
    """
    try:
        return resolve_redirect(url, location)
    except CredentialsInURL:
        raise ServiceError("origin-refused", "The URL redirects to one with a user name or a password.") from None
    except ValueError as error:
        message = "The URL redirects to something that is not an http or https URL."
        raise ServiceError("origin-refused", message) from OriginFailure(type(error).__name__)


@contextmanager
def _origin_errors() -> Iterator[None]:
    """Translates the errors of libraries to errors of the API."""
    try:
        yield
    except AddressRefused:
        raise ServiceError("url-not-allowed") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
        raise _translate(error) from OriginFailure(type(error).__name__)


def _translate(error: Exception) -> ServiceError:
    match error:
        case TimeoutError():
            return ServiceError("origin-too-slow")
        case DecodingError():
            return ServiceError("origin-refused", "The URL's server sent a body that cannot be decoded.")
        case aiohttp.InvalidURL():
            return ServiceError("invalid-url")
        case aiohttp.ClientConnectorDNSError():
            return ServiceError("origin-not-found")
        case _:
            return ServiceError("origin-refused")
