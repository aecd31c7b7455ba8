"""The samples in the documentation of the original API work: those of cURL, Node and Python are run, and the requests
of the other languages are sent.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from tests.conftest import Tenant
from tests.support.commands import run_program
from tests.support.raw_http import exchange
from tests.support.samples import jpeg
from tests.support.seed_samples import (
    ACCOUNT,
    ADD_TAGS,
    BASE_URL,
    CALLS,
    CREATE,
    CREATE_FROM_URL,
    DELETE,
    IMAGE_FILE,
    REMOVE_TAGS,
    REPAIRS,
    SHOW,
    SOURCE_URL,
    Call,
    Language,
    RepairName,
    repair,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("worker"), pytest.mark.settings(fetch_allow="127.0.0.0/8")]

LANGUAGES = [
    pytest.param("curl", marks=pytest.mark.needs("curl")),
    pytest.param("node", marks=pytest.mark.needs("node")),
    "python",
]

# For Node's samples: the package that they require is Node's own fetch today, and their output is parsed here.
NODE_FETCH = "module.exports = fetch;\n"
PRINT_JSON = "console.log = (value) => process.stdout.write(JSON.stringify(value));\n"


@dataclass(frozen=True)
class Reader:
    """A reader of the documentation who runs its samples."""

    port: int
    key: str
    picture_url: str
    folder: Path

    async def run(self, call: Call, language: Language, repairs: Collection[RepairName], image_id: str = "") -> Any:
        """Returns the output of the sample."""
        text = self._fill_in(repair(call.sample(language), language, repairs), image_id)
        command = {
            "curl": ["sh", "-c", text],
            "node": ["node", "-r", "./print_json.js", "-e", text],
            "python": [sys.executable, "-c", text],
        }[language]
        printed = await run_program(*command, folder=self.folder, timeout_s=20)
        parse = ast.literal_eval if language == "python" else json.loads
        return parse(printed)

    async def send(self, call: Call, target: str, headers: str = "", body: bytes = b"", image_id: str = "") -> Any:
        """Returns the status and the body of the response to these bytes."""
        head = self._fill_in(
            f"{call.method.upper()} {target} HTTP/1.1\r\nHost: api.imageresizer.io\r\n{headers}\r\n", image_id
        )
        status, _, answer = await exchange(self.port, head.encode() + body)
        return status, json.loads(answer)

    async def create(self) -> str:
        """Returns the id of a new image without tags."""
        status, answer = await self.send(
            CREATE, CREATE.url, f"Content-Length: {len(jpeg())}\r\nContent-Type: application/octet-stream\r\n", jpeg()
        )
        assert status == 200, answer
        return str(answer["response"]["id"])

    def _fill_in(self, text: str, image_id: str) -> str:
        """Fills in the key and the id, and the URLs of this test's service and picture."""
        for placeholder, value in (
            (BASE_URL, f"http://127.0.0.1:{self.port}/v1"),
            (quote(SOURCE_URL, safe=""), quote(self.picture_url, safe="")),
            (SOURCE_URL, self.picture_url),
            ("YOUR_API_KEY", self.key),
            ("{IMAGE_ID}", image_id),
        ):
            text = text.replace(placeholder, value)
        return text


@pytest.fixture
def reader(port: int, tenant: Tenant, picture_url: str, tmp_path: Path) -> Reader:
    (tmp_path / IMAGE_FILE).write_bytes(jpeg())
    (tmp_path / "print_json.js").write_text(PRINT_JSON)
    (tmp_path / "node_modules/node-fetch").mkdir(parents=True)
    (tmp_path / "node_modules/node-fetch/index.js").write_text(NODE_FETCH)
    return Reader(port, tenant.key, picture_url, tmp_path)


def shape(value: Any) -> Any:
    """Returns the keys in their order with the types of their values, and lists as they are."""
    if isinstance(value, dict):
        return [(name, shape(inner)) for name, inner in value.items()]
    return value if isinstance(value, list) else type(value)


@pytest.mark.parametrize("language", LANGUAGES)
async def test_samples_return_the_documented_shape(reader: Reader, language: Language) -> None:
    image_id = await reader.create()
    for call in CALLS:
        shown = await reader.run(call, language, REPAIRS, await reader.create() if call is DELETE else image_id)
        assert shape(shown) == shape(call.response), call.name


@pytest.mark.needs("curl")
async def test_unrepaired_curl_samples_get_clear_errors(reader: Reader) -> None:
    image_id = await reader.create()
    for call, code in (
        (CREATE_FROM_URL, "invalid-parameter"),  # the shell sent only what precedes the &
        (CREATE, "empty-body"),
        (ADD_TAGS, "unauthorized"),
        (REMOVE_TAGS, "unauthorized"),
    ):
        assert (await reader.run(call, "curl", (), image_id))["error"]["code"] == code, call.name
    for call in (SHOW, ACCOUNT, DELETE):  # nothing to repair
        assert shape(await reader.run(call, "curl", (), image_id)) == shape(call.response), call.name


@pytest.mark.needs("node")
async def test_unrepaired_node_samples_get_clear_errors(reader: Reader) -> None:
    image_id = await reader.create()
    for call, code in ((CREATE, "unsupported-image"), (ADD_TAGS, "unauthorized"), (REMOVE_TAGS, "unauthorized")):
        assert (await reader.run(call, "node", (), image_id))["error"]["code"] == code, call.name


async def test_unrepaired_python_samples_get_clear_errors(reader: Reader) -> None:
    image_id = await reader.create()
    # Without this repair, nothing is sent at all.
    for call, code in ((CREATE, "empty-body"), (ADD_TAGS, "unauthorized"), (REMOVE_TAGS, "unauthorized")):
        assert (await reader.run(call, "python", ["print"], image_id))["error"]["code"] == code, call.name


# jQuery appends `data` to the URL of a GET after a ? of its own, and sends it as the body of a POST.
PAGE = "Origin: https://page.example\r\nAccept: */*\r\n"


async def test_query_after_two_question_marks_is_read(reader: Reader) -> None:
    image_id = await reader.create()
    for call in (CREATE_FROM_URL, SHOW, ACCOUNT, ADD_TAGS, REMOVE_TAGS, DELETE):
        repaired = {"key": "YOUR_API_KEY", **call.query}
        target = f"/v1{call.path}??{urlencode(repaired)}"
        status, answer = await reader.send(call, target, PAGE, image_id=image_id)
        assert status == 200, call.name
        assert shape(answer) == shape(call.response), call.name


async def test_value_after_two_question_marks_is_decoded_once(reader: Reader) -> None:
    image_id = await reader.create()
    target = f"/v1/images/{image_id}/add_tags??{urlencode({'key': reader.key, 'tags': 'a%2Cb,100%25,a+b'})}"
    status, answer = await reader.send(ADD_TAGS, target, PAGE)
    assert (status, answer["response"]["tags"]) == (200, ["a%2Cb", "100%25", "a+b"])


async def test_unrepaired_jquery_samples_get_clear_errors(reader: Reader) -> None:
    for call in (ADD_TAGS, REMOVE_TAGS):
        status, answer = await reader.send(call, f"/v1{call.path}??{urlencode(call.query)}", PAGE, image_id="NKrigl4")
        assert (status, answer["error"]["code"]) == (401, "unauthorized")
    # Its upload has the key in place of the file, so no file can repair it.
    body = f"?key={reader.key}".encode()
    headers = f"{PAGE}Content-Type: application/octet-stream\r\nContent-Length: {len(body)}\r\n"
    status, answer = await reader.send(CREATE, "/v1/images", headers, body)
    assert (status, answer["error"]["code"]) == (401, "unauthorized")


# Java's HttpURLConnection sends cURL's URL; RestClient encodes its parameters as requests does.
JAVA = "Accept: text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2\r\n"
RUBY = "Accept: */*\r\nAccept-Encoding: gzip;q=1.0,deflate;q=0.6,identity;q=0.3\r\n"


@pytest.mark.parametrize("headers", [JAVA, RUBY], ids=["java", "ruby"])
async def test_java_and_ruby_requests_equal_those_of_curl(reader: Reader, headers: str) -> None:
    image_id = await reader.create()
    for call in (CREATE_FROM_URL, SHOW, ACCOUNT, DELETE):
        status, answer = await reader.send(call, call.url, headers, image_id=image_id)
        assert (status, shape(answer)) == (200, shape(call.response)), call.name
    for call in (ADD_TAGS, REMOVE_TAGS):  # without a key
        status, answer = await reader.send(call, call.url, headers, image_id=image_id)
        assert (status, answer["error"]["code"]) == (401, "unauthorized")


async def test_java_and_ruby_uploads_get_clear_errors(reader: Reader) -> None:
    status, answer = await reader.send(CREATE, CREATE.url, JAVA)
    assert (status, answer["error"]["code"]) == (400, "empty-body")
    # RestClient takes the parameters and headers of this sample for a form.
    body = urlencode({"params[key]": reader.key, "headers[Content-Type]": "application/octet-stream"}).encode()
    headers = f"{RUBY}Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n"
    status, answer = await reader.send(CREATE, "/v1/images", headers, body)
    assert (status, answer["error"]["code"]) == (401, "unauthorized")


async def test_absolute_urls_of_http_samples_are_accepted(reader: Reader) -> None:
    image_id = await reader.create()
    for call in (CREATE_FROM_URL, SHOW, ACCOUNT, DELETE):
        status, answer = await reader.send(call, call.url, "Accept: application/json\r\n", image_id=image_id)
        assert (status, shape(answer)) == (200, shape(call.response)), call.name
