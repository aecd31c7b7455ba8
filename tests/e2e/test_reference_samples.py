"""Runs the code samples of the reference: every language, for every operation of the API."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from playwright.async_api import Page

from service.api.openapi import examples
from service.api.openapi.document import make_document
from service.api.openapi.operations import OPERATIONS
from service.api.openapi.samples import FILE_NAME, KEY, LABELS, SAVED_NAME
from service.config.settings import Settings
from tests.conftest import Tenant
from tests.support.browser import open_page
from tests.support.commands import run_program
from tests.support.raw_http import exchange
from tests.support.samples import jpeg

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("worker"),
    pytest.mark.settings(fetch_allow="127.0.0.0/8"),
    pytest.mark.timeout(180),
]

EXAMPLE_ID = "NKrigl4"
JQUERY = files("xstatic.pkg.jquery") / "data" / "jquery.min.js"


@dataclass(frozen=True)
class Reader:
    """A reader of the reference, who runs its samples in a folder with a picture."""

    port: int
    key: str
    picture_url: str
    folder: Path

    async def create(self) -> str:
        """Returns the id of a new image."""
        head = f"POST /v1/images HTTP/1.1\r\nHost: a\r\nX-Api-Key: {self.key}\r\nContent-Type: image/jpeg\r\n"
        _, _, body = await exchange(self.port, f"{head}Content-Length: {len(jpeg())}\r\n\r\n".encode() + jpeg())
        return str(json.loads(body)["response"]["id"])

    async def samples(self, label: str) -> AsyncIterator[tuple[str, str]]:
        """Yields the name of each operation with its sample, filled in with the key and the id of a new image."""
        document = make_document(Settings(public_url=f"http://127.0.0.1:{self.port}"))
        for operation in OPERATIONS:
            description = document["paths"][operation.path][operation.method.lower()]
            [source] = [sample["source"] for sample in description["x-codeSamples"] if sample["label"] == label]
            yield operation.name, self._fill_in(source, await self.create())

    def _fill_in(self, source: str, image_id: str) -> str:
        for example, value in (
            (KEY, self.key),
            (EXAMPLE_ID, image_id),
            (quote(examples.SOURCE_URL, safe=""), quote(self.picture_url, safe="")),
            (examples.SOURCE_URL, self.picture_url),
        ):
            source = source.replace(example, value)
        return source

    async def run(self, *command: str) -> str:
        """Returns the stdout of the command."""
        return await run_program(*command, folder=self.folder, timeout_s=60)

    def take_saved(self) -> bytes | None:
        """Returns the file that the sample wrote, and removes it."""
        path = self.folder / SAVED_NAME
        if not path.exists():
            return None
        data = path.read_bytes()
        path.unlink()
        return data


@pytest.fixture
def reader(port: int, tenant: Tenant, picture_url: str, tmp_path: Path) -> Reader:
    (tmp_path / FILE_NAME).write_bytes(jpeg())
    return Reader(port, tenant.key, picture_url, tmp_path)


def check(name: str, output: str, saved: bytes | None) -> None:
    """Asserts that a sample saved a picture, printed a success, or printed the response of a route for operators."""
    if name in {"showPicture", "showNamedPicture"}:
        assert saved is not None, name
        assert saved.startswith(b"\xff\xd8"), name
        return
    assert output.strip(), name
    if output.lstrip().startswith("{"):
        assert json.loads(output).get("success", True) is True, (name, output)


async def run_curl(reader: Reader, source: str) -> str:
    return await reader.run("sh", "-c", source.replace("curl ", "curl -sS ", 1))


async def run_node(reader: Reader, source: str) -> str:
    return await reader.run("node", "--input-type=module", "-e", source)


async def run_java(reader: Reader, source: str) -> str:
    (reader.folder / "Sample.java").write_text(source)
    return await reader.run("java", "-XX:TieredStopAtLevel=1", "Sample.java")


async def run_python(reader: Reader, source: str) -> str:
    return await reader.run(sys.executable, "-c", source)


async def run_ruby(reader: Reader, source: str) -> str:
    return await reader.run("ruby", "-e", source)


async def run_http(reader: Reader, source: str) -> str:
    """Sends the lines of the sample unchanged, except that its placeholders are replaced by the picture."""
    picture = jpeg()
    request = source.replace(f"[the size of {FILE_NAME}]", str(len(picture))).replace("\n", "\r\n").encode()
    request = request.replace(f"[the bytes of {FILE_NAME}]".encode(), picture)
    status, headers, body = await exchange(reader.port, request)
    assert status == 200, body
    if headers["content-type"].startswith("image/"):
        (reader.folder / SAVED_NAME).write_bytes(body)
        return ""
    return body.decode()


@pytest.mark.parametrize(
    ("label", "run"),
    [
        pytest.param("cURL", run_curl, marks=pytest.mark.needs("curl")),
        ("HTTP", run_http),
        pytest.param("Node.js", run_node, marks=pytest.mark.needs("node")),
        pytest.param("Java", run_java, marks=pytest.mark.needs("javac")),
        ("Python", run_python),
        pytest.param("Ruby", run_ruby, marks=pytest.mark.needs("ruby")),
    ],
)
async def test_samples_run_unchanged(reader: Reader, label: str, run: Callable[[Reader, str], Awaitable[str]]) -> None:
    async for name, source in reader.samples(label):
        output = await run(reader, source)
        check(name, output, reader.take_saved())


@pytest.mark.needs("chromium")
async def test_jquery_samples_run_in_a_page(reader: Reader) -> None:
    async with open_page() as page:
        await page.set_content("<input type=file>")
        await page.add_script_tag(path=str(JQUERY))
        async for name, source in reader.samples("jQuery"):
            await page.set_input_files("input", str(reader.folder / FILE_NAME))
            if name in {"showPicture", "showNamedPicture"}:
                await page.evaluate("document.querySelectorAll('img').forEach((image) => image.remove())")
                await run_script(page, source)
                await page.wait_for_function("document.images.length && document.images[0].naturalWidth > 0")
                continue
            async with page.expect_console_message() as message:
                await run_script(page, source)
            check(name, (await message.value).text, None)


async def run_script(page: Page, source: str) -> Any:
    """Runs a sample in its own function, because all samples declare the same names."""
    return await page.evaluate(f"() => {{ {source} }}")


def test_samples_exist_in_the_required_languages() -> None:
    assert set(LABELS) == {"HTTP", "cURL", "jQuery", "Node.js", "Java", "Python", "Ruby"}
