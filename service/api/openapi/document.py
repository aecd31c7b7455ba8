"""The OpenAPI 3.1 document, put together from the operations."""

from __future__ import annotations

from collections import defaultdict
from importlib.metadata import version

from service.api.openapi import schemas
from service.api.openapi.operations import OPERATIONS
from service.api.openapi.parts import Answer, Body, Json, Operation, Parameter
from service.api.openapi.responses import HEADERS, OF_LIMIT, describe_errors, headers
from service.api.openapi.samples import make_samples
from service.config.settings import Settings
from service.config.sizes import readable

_DESCRIPTION = """\
Daguerre stores pictures and answers with an id, the dimensions, EXIF and a preview of about 500 bytes.

Every answer under `/v1` is `{{"success": true, "response": …}}`, or `{{"success": false, "error": …}}` with the right
status; an address that does not take a method answers 405 with `Allow`. A method may be written in lower case, and a
`?` at the beginning of the query string is ignored. A body may have {max_upload}. HEAD is answered wherever GET changes
nothing, and OPTIONS everywhere, without a key.
"""

_TAGS = {
    "images": "Create, show, find and delete images.",
    "tags": "Add and remove the tags of images.",
    "account": "How much is stored, and how much space is left.",
    "delivery": "Show images, as they are or as renditions.",
    "service": "For those who run the service.",
}

_SECURITY_SCHEMES: Json = {
    "query": {"type": "apiKey", "in": "query", "name": "key"},
    "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
    "bearer": {"type": "http", "scheme": "bearer"},
}


def make_document(settings: Settings) -> Json:
    server_url = settings.public_url.rstrip("/")
    paths: dict[str, Json] = defaultdict(dict)
    for operation in OPERATIONS:
        paths[operation.path][operation.method.lower()] = {
            **_describe(operation),
            "x-codeSamples": make_samples(operation, server_url),
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Daguerre",
            "version": version("daguerre"),
            "summary": "A self-hosted image host",
            "description": _DESCRIPTION.format(max_upload=readable(settings.max_upload)),
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": server_url}],
        "security": [{name: []} for name in _SECURITY_SCHEMES],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": schemas.components(),
            "securitySchemes": _SECURITY_SCHEMES,
            "headers": HEADERS,
        },
    }


def _describe(operation: Operation) -> Json:
    described: Json = {
        "operationId": operation.name,
        "tags": [operation.tag],
        "summary": operation.summary,
        "responses": {
            **{str(answer.status): _describe_answer(operation, answer) for answer in operation.answers},
            **describe_errors(operation),
        },
    }
    if operation.description:
        described["description"] = operation.description
    if operation.parameters:
        described["parameters"] = [_describe_parameter(parameter) for parameter in operation.parameters]
    if operation.body is not None:
        described["requestBody"] = _describe_body(operation.body)
    if not operation.needs_key:
        described["security"] = []
    return described


def _describe_parameter(parameter: Parameter) -> Json:
    described: Json = {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.required,
        "description": parameter.description,
        "schema": parameter.schema,
    }
    if parameter.schema.get("type") == "array":
        described |= {"style": "simple" if parameter.place == "path" else "form", "explode": False}
    if parameter.schema == schemas.FLAG:
        described["allowEmptyValue"] = True
    if parameter.example is not None:
        described["example"] = parameter.example
    return described


def _describe_body(body: Body) -> Json:
    return {"description": body.description, "required": body.required, "content": body.content}


def _describe_answer(operation: Operation, answer: Answer) -> Json:
    content: Json = {}
    if answer.schema is not None:
        content["schema"] = answer.schema
    if answer.examples:
        content["examples"] = {name: {"value": value} for name, value in answer.examples.items()}
    described: Json = {
        "description": answer.description,
        "headers": headers("X-Request-Id", *answer.headers, *(OF_LIMIT if operation.needs_key else ())),
    }
    if answer.media_types:
        described["content"] = dict.fromkeys(answer.media_types, content)
    if answer.leads_to:
        described["links"] = {
            name: {"operationId": name, "parameters": {"id": "$response.body#/response/id"}} for name in answer.leads_to
        }
    return described
