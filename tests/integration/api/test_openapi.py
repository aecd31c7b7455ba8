"""The OpenAPI document is valid, describes every route and error, and matches real responses."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema_rs
import pytest
import schemathesis

from service.api.app import create_app
from service.api.openapi import examples
from service.api.openapi.document import make_document
from service.api.openapi.operations import OPERATIONS
from service.api.openapi.parts import Parameter
from service.api.openapi.renditions import RENDITION
from service.config.settings import Settings
from service.errors import CATALOGUE, ServiceError
from service.media_types import MIME_TYPES
from service.renditions.parameters import NAMES
from service.renditions.parsing import parse
from tests.conftest import Client, NewTenant, Tenant
from tests.support.samples import jpeg

ROOT = Path(__file__).parents[3]
DOCUMENT = make_document(Settings(public_url="https://img.example.com/"))


def test_document_is_valid_openapi_3_1() -> None:
    schema = schemathesis.openapi.from_dict(DOCUMENT)
    schema.validate()
    assert DOCUMENT["openapi"].startswith("3.1.")


def test_invalid_document_is_detected() -> None:
    broken = json.loads(json.dumps(DOCUMENT))
    del broken["paths"]["/v1/account"]["get"]["responses"]["200"]["description"]
    with pytest.raises(jsonschema_rs.ValidationError):
        schemathesis.openapi.from_dict(broken).validate()


def test_document_has_exactly_the_routes() -> None:
    routes = {
        (route.method, route.resource.canonical)
        for route in create_app(Settings()).router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    described = [(operation.method, operation.path) for operation in OPERATIONS]
    assert set(described) == routes
    assert len(described) == len(routes)


def test_every_error_code_is_documented() -> None:
    text = json.dumps(DOCUMENT)
    undocumented = {"method-not-allowed"}
    assert {code for code in CATALOGUE if f'"{code}"' not in text} == undocumented


def test_the_parameters_of_renditions_are_those_that_are_read() -> None:
    assert {parameter.name for parameter in RENDITION} == set(NAMES)


# What a parameter needs beside it.
_COMPANIONS = {
    "dpr": [("width", "100")],
    "fit": [("size", "100x100")],
    "gravity": [("crop", "100x100")],
    "watermark-position": [("watermark", "AAAAAAA")],
    "watermark-opacity": [("watermark", "AAAAAAA")],
    "watermark-width": [("watermark", "AAAAAAA")],
    "keep-location": [("metadata", "keep")],
}


@pytest.mark.parametrize("parameter", RENDITION, ids=lambda parameter: parameter.name)
def test_the_values_that_renditions_may_have_are_those_that_are_taken(parameter: Parameter) -> None:
    def is_taken(value: object) -> bool:
        try:
            parse(
                [*_COMPANIONS.get(parameter.name, []), (parameter.name, str(value).lower())], presets={"a": "width=1"}
            )
        except ServiceError:
            return False
        return True

    for schema in parameter.schema.get("anyOf", [parameter.schema]):
        if "enum" in schema:
            assert all(is_taken(value) for value in schema["enum"])
        if "maximum" in schema:
            assert is_taken(schema["minimum"])
            assert is_taken(schema["maximum"])
            assert not is_taken(schema["maximum"] + 1)
            assert not is_taken(schema["minimum"] - 1)
        if schema.get("type") == "boolean":
            assert is_taken(True)
            assert is_taken(False)
        if "default" in schema:
            assert is_taken(schema["default"])
    assert not is_taken("perhaps,")


def examples_of(node: Any) -> Any:
    """Yields each schema that has an example, and the example."""
    if isinstance(node, dict):
        if "schema" in node:
            if "example" in node:
                yield node["schema"], node["example"]
            for example in node.get("examples", {}).values():
                yield node["schema"], example["value"]
        for value in node.values():
            yield from examples_of(value)
    elif isinstance(node, list):
        for value in node:
            yield from examples_of(value)


def test_examples_match_their_schemas() -> None:
    pairs = list(examples_of(DOCUMENT["paths"]))
    assert len(pairs) > len(OPERATIONS)
    for schema, example in pairs:
        whole = {**schema, "components": DOCUMENT["components"]}
        jsonschema_rs.Draft202012Validator(whole).validate(example)


def test_document_has_version_server_and_security() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", DOCUMENT["info"]["version"])
    assert DOCUMENT["servers"] == [{"url": "https://img.example.com"}]
    assert set(DOCUMENT["components"]["securitySchemes"]) == {"query", "header", "bearer"}
    without_key = {operation.path for operation in OPERATIONS if not operation.needs_key}
    assert not any(path.startswith("/v1") for path in without_key)


async def test_document_is_public_and_revalidated(api: Client) -> None:
    response = await api.get("/openapi.json")
    assert (response.status, response.content_type) == (200, "application/json")
    assert (await response.json())["info"]["title"] == "Daguerre"
    etag = response.headers["ETag"]
    again = await api.get("/openapi.json", headers={"If-None-Match": etag})
    assert (again.status, await again.read(), again.headers["ETag"]) == (304, b"", etag)
    other = await api.get("/openapi.json", headers={"If-None-Match": '"another"'})
    assert other.status == 200


CONFIGURATION = """
base-url = "http://127.0.0.1:{port}"
hooks = "tests.support.schemathesis_hooks"
continue-on-failure = true
suppress-health-check = ["all"]  # they depend on the speed of this machine
cache.enabled = false
auth.openapi.header.api_key = "{key}"

[generation]
deterministic = true
database = "none"
max-examples = 10

[[operations]]  # not in any schema: an unknown id (a 400 as in the original API), a 21st tag
include-operation-id = ["deleteImages", "deleteImagesByGet", "addTags", "addTagsByGet"]
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 401, 404]

[[operations]]  # contradictory parameters, invalid signatures, unknown presets
include-operation-id = ["showPicture", "showNamedPicture"]
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 403, 404]

[[operations]]  # DELETE there is DELETE /v1/images/{{id}}, whose id is malformed
include-operation-id = "searchImages"
checks.unsupported_method.enabled = false
checks.allow_header_conformance.enabled = false
"""


async def run_schemathesis(
    folder: Path,
    port: int,
    tenant: Tenant,
    document: Any,
    *,
    picture_url: str = "",
    shown_id: str = "",
    phases: str = "examples,coverage,fuzzing,stateful",
) -> tuple[int, str]:
    """Sends valid and invalid requests to the service. Returns the exit code and the output."""
    (folder / "openapi.json").write_text(json.dumps(document))
    (folder / "schemathesis.toml").write_text(CONFIGURATION.format(port=port, key=tenant.key))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "schemathesis.cli",
        "--config-file",
        "schemathesis.toml",
        "run",
        "openapi.json",
        "--no-color",
        "--phases",
        phases,
        "--exclude-path",
        "/i/{id}/{name}",  # the same handler as /i/{id}, and each request may be a rendition
        cwd=folder,
        env=os.environ
        | {
            "PYTHONPATH": str(ROOT),
            "PICTURE_TYPES": " ".join(MIME_TYPES.values()),
            "PICTURE_URL": picture_url,
            "IMAGE_ID": shown_id,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        printed, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, printed.decode()


async def upload(port: int, owner: Tenant) -> str:
    headers = {**owner.headers, "Content-Type": "image/jpeg"}
    async with (
        aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=headers) as session,
        session.post("/v1/images", data=jpeg(64, 48)) as response,
    ):
        assert response.status == 200
        return str((await response.json())["response"]["id"])


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.settings(fetch_allow="127.0.0.0/8", not_found_rate_limit="", rendition_rate_limit="")
@pytest.mark.usefixtures("worker")
async def test_real_responses_match_the_document(
    port: int, tenant: Tenant, new_tenant: NewTenant, picture_url: str, tmp_path: Path
) -> None:
    shown_id = await upload(port, await new_tenant())  # whose images are not deleted
    document = json.loads(json.dumps(DOCUMENT).replace(examples.SOURCE_URL, picture_url))
    code, printed = await run_schemathesis(tmp_path, port, tenant, document, picture_url=picture_url, shown_id=shown_id)
    assert code == 0, printed


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_undocumented_responses_are_detected(port: int, tenant: Tenant, tmp_path: Path) -> None:
    document = json.loads(json.dumps(DOCUMENT).replace("image-not-found", "another-code"))
    document["paths"] = {path: {"get": document["paths"][path]["get"]} for path in ("/v1/account", "/v1/images/{id}")}
    document["components"]["schemas"]["AccountUsage"]["required"].append("owner")
    code, printed = await run_schemathesis(tmp_path, port, tenant, document, phases="coverage")
    assert code == 1, printed
    assert '"owner" is a required property' in printed
    assert '"image-not-found" is not one of' in printed
