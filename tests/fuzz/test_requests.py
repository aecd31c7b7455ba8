"""Sends malformed requests as bytes. Each gets a response, an error has a code, and none is a 500.

Requests that follow or violate the OpenAPI document are sent by tests/integration/api/test_openapi.py.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.errors import CATALOGUE
from service.renditions.parameters import NAMES, SIGNING
from tests.conftest import Fuzzing, Tenant
from tests.support.samples import jpeg

pytestmark = pytest.mark.slow

_MAX_S = 10


def _quote(text: str) -> str:
    return "".join(f"%{byte:02x}" for byte in text.encode("utf-8", "surrogatepass"))


def _clean(text: str) -> str:
    """Removes characters that would end a header or a request."""
    return "".join(character for character in text if character > "\x1f")


_METHODS = st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "get", "X"])
_IDS = st.one_of(
    st.sampled_from(["AAAAAAA", "AAAAAAA,BBBBBBB", ",", "..", "%00", "%2F", "%ff", "search", "a" * 17, "A" * 5_000]),
    st.from_regex(r"[A-Za-z0-9]{6,17}", fullmatch=True),
    st.text(max_size=9).map(_quote),
)
_PATHS = st.one_of(
    st.sampled_from(
        [
            "/v1/images",
            "/v1/images/search",
            "/v1/account",
            "/openapi.json",
            "/healthz",
            "/readyz",
            "/metrics",
            "/",
            "*",
        ]
    ),
    st.builds(
        "/v1/images/{}{}".format, _IDS, st.sampled_from(["", "/", "/tags", "/delete", "/add_tags", "/remove_tags"])
    ),
    st.builds("/i/{}{}".format, _IDS, st.sampled_from(["", "/", "/car.webp", "/%ff.png", "/a/b"])),
)
# Most are endpoints of the API, so that parameters and bodies are read.
_TARGETS = st.one_of(
    st.tuples(_METHODS, _PATHS),
    *[
        st.sampled_from(
            [
                *[("POST", "/v1/images"), ("GET", "/v1/images"), ("GET", "/v1/images/search")] * 2,
                *[("PUT", "/v1/images/AAAAAAA/tags"), ("DELETE", "/v1/images/AAAAAAA,BBBBBBB/tags")],
                *[("GET", "/v1/images/AAAAAAA/add_tags"), ("GET", "/v1/images/AAAAAAA"), ("GET", "/v1/account")],
                *[("GET", "/i/READYIMAGE"), ("HEAD", "/i/READYIMAGE/car"), ("GET", "/i/READYIMAGE/a.png")] * 2,
            ]
        )
    ]
    * 4,
)
# None of these is looked up in the database.
_HOSTS = st.sampled_from(
    [
        "127.0.0.1:1",
        "[::1]:1",
        "0x7f.1",
        "2130706433",
        "[::ffff:127.0.0.1]",
        "169.254.169.254",
        "a:b@10.0.0.1",
        ":0",
        "",
        "127.0.0.1:99999",
        "[",
        "[v1.x]",
        "0",
        "localhost",
        "x" * 300,
    ]
)
_URLS = st.builds(
    "{}{}/{}".format,
    st.sampled_from(["http://", "https://", "file:///", "gopher://", "//", "HTTP:", ""]),
    _HOSTS,
    st.text(max_size=5),
)
_VALUES = st.one_of(
    st.sampled_from(
        ["", "true", "1", "0", "-1", "1e9", "NaN", "9" * 400, "x" * 3_000, "\x00", "\ud800", ",", ",".join("abc" * 9)]
    ),
    st.sampled_from(
        ["2026-11-24", "0000-00-00", "9999-12-31T23:59:59.999999+23:59", "-9999-01-01", "0001-01-01T00:00:00+14:00"]
    ),
    st.sampled_from(["300", "300x200", "0.5,0.5", "cover", "smart", "50%", "#ffcc0080", "auto", "READYIMAGE"]),
    st.sampled_from(["jpeg", "tiff", "0" * 64, "AAAA", "eyJ9", "=" * 8]),
    st.integers().map(str),
    st.datetimes().map(lambda moment: moment.isoformat()),
    st.text(max_size=20),
    _URLS,
)
_NAMES = st.sampled_from(
    [
        "tags",
        "url",
        "key",
        "limit",
        "cursor",
        "format",
        "sha256",
        "created_after",
        "created_before",
        "verbose",
        "with_exif",
        "with_mini_preview",
        "with_account",
        *NAMES,
        *SIGNING,
        "?tags",
        "tags[]",
        "\x00",
        "",
    ]
)


_PARAMETERS = st.lists(
    st.one_of(
        *[st.builds(lambda name, value: f"{_quote(name)}={_quote(value)}", _NAMES, _VALUES)] * 4,
        st.builds(lambda name, value: f"{name}={_clean(value)}".replace(" ", "+"), _NAMES, _VALUES),
        st.sampled_from(["%", "%zz", "&&", "=", "tags", "verbose", "%ff=%ff", "tags=%C3%28", "a;b", "?"]),
    ),
    max_size=4,
)
_HEADER_NAMES = st.sampled_from(
    ["Idempotency-Key", "Authorization", "X-Api-Key", "Forwarded", "Accept", "Origin", "X-Request-Id", "Cookie", "X"]
)
_HEADER_LINES = st.lists(
    st.one_of(
        st.builds("{}: {}".format, _HEADER_NAMES, st.one_of(_VALUES.map(_clean), _VALUES.map(_quote))),
        st.sampled_from(
            [
                "Expect: 100-continue",
                "Expect: x",
                "Expect: 100-continue, x",
                "Upgrade: h2c\r\nConnection: upgrade",
                "Content-Encoding: gzip",
                "Content-Encoding: deflate",
                "Content-Encoding: br",
                "Accept-Encoding: gzip;q=x",
                "Transfer-Encoding: chunked",
                "Transfer-Encoding: gzip",
                "Content-Length: -1",
                "Content-Length: 99999999999",
                "Connection: close",
                "If-None-Match: *",
                'If-None-Match: "a", W/"',
                "If-Modified-Since: yesterday",
                "Range: bytes=0-0",
                "Range: bytes=9999999-",
                "Range: bytes=-0,5-,x",
                'Range: bytes=5-\r\nIf-Range: "a',
                "Accept: image/avif;q=0, image/webp;q=x, */*;;",
                "X-Forwarded-For: ::1, , x",
                "Access-Control-Request-Method: PUT",
                "Host: a\r\nHost: b",
                ": x",
            ]
        ),
    ),
    max_size=2,
)
_CONTENT_TYPES = st.sampled_from(
    [
        "application/json",
        "application/json; charset=utf-16",
        "application/octet-stream",
        "image/jpeg",
        "image/",
        "/",
        "multipart/form-data",
        "multipart/form-data; boundary=x",
        'multipart/form-data; boundary=""',
        "text/plain",
        "",
        "multipart/mixed; boundary=x",
        "multipart/form-data; boundary=" + "x" * 80,
        "image/svg+xml;;;=",
        "\xff",
    ]
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9) | _URLS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["url", "tags", "a"]), inner, max_size=3)
        | st.builds(lambda url, tags: {"url": url, "tags": tags}, _URLS, st.lists(inner, max_size=22))
    ),
    max_leaves=12,
)
_FORM_LINES = st.sampled_from(
    [
        b"--x\r\n",
        b"--x--\r\n",
        b"--x",
        b"\r\n",
        b"abc",
        b"\x00\xff",
        b"Content-Type: image/png\r\n",
        b"\r\n--x\r\n",
        b"--x--",
        b'Content-Disposition: form-data; name="f"; filename="f"\r\n\r\n',
        b"Content-Disposition: x; filename*=\xff\r\n\r\n",
        b"Content-Transfer-Encoding: base64\r\n",
        b"Content-Encoding: gzip\r\n",
        b"Content-Length: 9\r\n",
        b"A" * 9000,
        b"Content-Type: multipart/mixed; boundary=y\r\n\r\n--y\r\n",
    ]
)
_BODIES = st.one_of(
    st.just(b""),
    st.binary(max_size=60),
    _JSON.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")),
    st.sampled_from(
        [b"[" * 50_000, b'{"url": ' * 9_000, b'{"tags": ["\\ud800"]}', b'{"url": "\\u0000"}', b'"' * 70_000]
    ),
    st.lists(_FORM_LINES, max_size=9).map(b"".join),
    st.sampled_from([jpeg(), jpeg()[:50], b"5\r\nabc", b"-1\r\n\r\n", b"ffffffffffffffff1\r\nx", b"0\r\n\r\n"]),
)


def _build(
    target: tuple[str, str], parameters: list[str], headers: list[str], kind: str, body: bytes, key: str, length: bool
) -> bytes:
    """Returns a request; `{key}` is replaced by the tenant's key."""
    query = "&".join([*([f"key={key}"] if key else []), *parameters])
    lines = [f"{target[0]} {target[1]}?{query} HTTP/1.1", "Host: x", f"Content-Type: {kind}", *headers]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogatepass") + body


_REQUESTS = st.one_of(
    *[
        st.builds(
            _build,
            _TARGETS,
            _PARAMETERS,
            _HEADER_LINES,
            _CONTENT_TYPES,
            _BODIES,
            st.sampled_from(["{key}", ""]),
            lengths,
        )
        for lengths in (st.just(True), st.just(True), st.booleans())
    ],
    st.binary(max_size=200).map(lambda noise: b"X" + noise + b"\r\n\r\n"),
)


@pytest.fixture
async def ready_image(port: int, connection: Any, tenant: Tenant) -> None:
    """Inserts an image while the service runs.

    Its file is missing, and no worker renders it, but its parameters are parsed all the same.
    """
    await connection.execute(
        "insert into images (id, account_id, size, sha256, state, format, width, height, orientation, pages, "
        "has_alpha, exif, mini_preview) "
        "values ('READYIMAGE', $1, 1, sha256(''), 'ready', 'gif', 400, 300, 1, 3, true, '{}', 'x')",
        tenant.id,
    )


@pytest.mark.settings(wait_s=0.01, upload_idle_timeout_s=0.1, upload_timeout_s=0.2)
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ready_image")
@given(request=_REQUESTS)
@example(request=b"GET /v1/images/search?key={key}&cursor=%ff HTTP/1.1\r\nHost: x\r\n\r\n")
async def test_any_request_gets_a_response_and_no_500(
    port: int, tenant: Tenant, caplog: pytest.LogCaptureFixture, fuzzing: Fuzzing, request: bytes
) -> None:
    caplog.clear()
    sent = request.replace(b"{key}", tenant.key.encode())
    try:
        async with asyncio.timeout(_MAX_S):
            response = await _exchange(port, sent)
    except TimeoutError:
        pytest.fail(f"no response to {request!r}")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    head, _, body = response.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    assert status < 500 or status == 503, response[:1_000]
    if status >= 400 and body and b"/readyz" not in sent:  # its 503 has another form, and names the failing checks
        error = json.loads(body)["error"]
        assert CATALOGUE[error["code"]][0] == status
        assert tenant.key not in error["message"]


async def _exchange(port: int, request: bytes) -> bytes:
    """Returns the response, or nothing if the connection ends before it.

    The service waits for bodies that end too early, and responds, since the timeouts are short here.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        while head.startswith(b"HTTP/1.1 100 "):
            head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: (\d+)", head.lower())
        if length is None or request[:5].upper() == b"HEAD ":
            return head
        return head + await reader.readexactly(int(length[1]))
    except (ConnectionError, asyncio.IncompleteReadError):
        return b""
    finally:
        writer.close()
