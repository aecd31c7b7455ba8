"""The comparators of the benchmark do the work that it measures."""

from __future__ import annotations

import base64
import io
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import requests
from PIL import Image

from bench.comparators.start import running
from bench.photographs import photograph
from tests.support.comparators import command_of

pytestmark = pytest.mark.slow

KEY = "a-key"


@dataclass(frozen=True)
class Comparator:
    name: str
    url: str
    files: Path

    def post(self, body: bytes, **parameters: str) -> requests.Response:
        return requests.post(
            f"{self.url}/v1/images",
            body,
            params={"key": KEY, **parameters},
            headers={"Content-Type": "image/jpeg"},
            timeout=10,
        )

    def get(self, image_id: str, **parameters: str) -> requests.Response:
        return requests.get(f"{self.url}/v1/images/{image_id}", {"key": KEY, **parameters}, timeout=10)

    def show(self, path: str) -> requests.Response:
        return requests.get(f"{self.url}/{path}", timeout=10)


@pytest.fixture
def comparator(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> Iterator[Comparator]:
    argv = command_of(request.param)
    port, files, log = _free_port(), tmp_path / "files", tmp_path / "log"
    with running(argv, port=port, dsn=database_url, files=files, key=KEY, log=log, fsync=True) as process:
        yield Comparator(request.param, f"http://127.0.0.1:{port}", files)
    assert process.returncode == 0, log.read_text()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def named(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("comparator", names, indirect=True)


@pytest.mark.timeout(240)  # npm installs
@named("fastify_sharp", "fastapi_pillow")
async def test_upload_is_probed_and_read(comparator: Comparator, connection: Any) -> None:
    small, large = photograph("s"), photograph("m")
    for body, width, height in ((small, 640, 480), (_rotate(large), 1500, 2000)):
        response = comparator.post(body, with_exif="1", with_mini_preview="1")
        assert response.status_code == 200, response.text
        image = response.json()["response"]
        exif, preview = image.pop("exif"), base64.b64decode(image.pop("mini_preview"))
        assert image == {"id": image["id"], "width": width, "height": height, "filesize": len(body), "tags": []}
        assert (exif["Make"], exif["Model"], exif["FNumber"]) == ("Daguerre", "Plate 1839", 8)
        assert exif["GPSLatitude"] == pytest.approx(46.52, abs=0.01)
        assert len(preview) <= 500
        with Image.open(io.BytesIO(preview)) as decoded:
            assert decoded.format == "JPEG"
            assert (decoded.width < decoded.height) == (width < height)
        assert (comparator.files / f"{image['id']}.jpg").read_bytes() == body

        assert comparator.get(image["id"]).json() == {"success": True, "response": image}
        row = await connection.fetchrow(f"select * from {comparator.name} where id = $1", image["id"])
        assert (row["format"], row["preview"]) == ("jpeg", preview)

    assert comparator.post(small).json()["response"].keys() == {"id", "width", "height", "filesize", "tags"}
    assert comparator.post(small, key="another").status_code == 401
    assert comparator.get(image["id"], key="another").status_code == 401
    assert comparator.get("nothing").status_code == 404
    for damaged in (small[:20_000], b"not a picture"):
        assert comparator.post(damaged).status_code == 415
    assert len(list(comparator.files.iterdir())) == 3


@named("bare_aiohttp")
async def test_bare_aiohttp_stores_files_and_reads_rows(comparator: Comparator, connection: Any) -> None:
    for body in (photograph("s"), os.urandom(3 << 20)):
        image_id = comparator.post(body).json()["response"]["id"]
        assert (comparator.files / f"{image_id}.jpg").read_bytes() == body
    assert len(list(comparator.files.iterdir())) == 2
    row: asyncpg.Record = await connection.fetchrow(
        "insert into bare_aiohttp (id, width, height, filesize, format, exif, preview)"
        " values ('a', 640, 480, 22000, 'jpeg', '{}', '') returning id, width, height, filesize"
    )
    assert comparator.get("a").json() == {"success": True, "response": {**row, "tags": []}}
    assert comparator.get("b").status_code == 404

    (comparator.files / "picture.jpg").write_bytes(body)
    assert comparator.show("i/picture").content == body


@pytest.mark.timeout(240)  # npm and pip install
@pytest.mark.parametrize(
    ("comparator", "path"),
    [("bare_sharp", "i/picture?width=300"), ("thumbor", "unsafe/300x0/picture.jpg")],
    indirect=["comparator"],
)
def test_photograph_is_resized_and_rotated(comparator: Comparator, path: str) -> None:
    photographs = {(300, 225): photograph("m"), (300, 400): _rotate(photograph("m"))}
    for size, body in photographs.items():  # the second must not come from a cache of the first
        (comparator.files / "picture.jpg").write_bytes(body)
        response = comparator.show(path)
        assert (response.status_code, response.headers["Content-Type"]) == (200, "image/jpeg")
        with Image.open(io.BytesIO(response.content)) as image:
            assert (image.format, image.size) == ("JPEG", size)
    assert comparator.show(path.replace("picture", "another")).status_code == 404


def _rotate(body: bytes) -> bytes:
    """Returns the photograph with an EXIF orientation of 6, like that of a camera in portrait orientation."""
    with Image.open(io.BytesIO(body)) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        out = io.BytesIO()
        image.save(out, "JPEG", quality=85, exif=exif)
        return out.getvalue()
