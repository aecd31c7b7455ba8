"""The OpenAPI 3.1 document, assembled from the operations."""

from __future__ import annotations

from collections import defaultdict

from service.api.openapi import schemas
from service.api.openapi.operations import OPERATIONS
from service.api.openapi.parts import Body, Json, Operation, Parameter, Response
from service.api.openapi.responses import HEADERS, RATE_LIMIT_HEADERS, describe_errors, headers
from service.api.openapi.samples import make_samples
from service.config.settings import Settings
from service.config.values import format_size
from service.version import VERSION

_DESCRIPTION = """\
Daguerre stores images, and returns an id, the dimensions, EXIF and a preview of about 500 bytes.

Every response under `/v1` is `{{"success": true, "response": …}}`, or `{{"success": false, "error": …}}` with the
matching status. A path that does not support a method responds with 405 and `Allow`. Methods may be in lower case, and
a `?` at the beginning of the query string is ignored. A body may have at most {max_upload}. HEAD is supported wherever
GET changes nothing. OPTIONS is supported everywhere and needs no key.
"""

_TAGS = {
    "images": "Create, show, search and delete images.",
    "tags": "Add and remove the tags of images.",
    "account": "The account of the API key, and how much storage it uses.",
    "delivery": "Get images, as they were uploaded or as renditions.",
    "service": "For operators of the service.",
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
            "version": VERSION,
            "summary": "A self-hosted image host",
            "description": _DESCRIPTION.format(max_upload=format_size(settings.max_upload)),
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
            **{str(response.status): _describe_response(operation, response) for response in operation.responses},
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
        "in": parameter.location,
        "required": parameter.required,
        "description": parameter.description,
        "schema": parameter.schema,
    }
    if parameter.schema.get("type") == "array":
        described |= {"style": "simple" if parameter.location == "path" else "form", "explode": False}
    if parameter.schema == schemas.FLAG:
        described["allowEmptyValue"] = True
    if parameter.example is not None:
        described["example"] = parameter.example
    return described


def _describe_body(body: Body) -> Json:
    return {"description": body.description, "required": body.required, "content": body.content}


def _describe_response(operation: Operation, response: Response) -> Json:
    content: Json = {}
    if response.schema is not None:
        content["schema"] = response.schema
    if response.examples:
        content["examples"] = {name: {"value": value} for name, value in response.examples.items()}
    described: Json = {
        "description": response.description,
        "headers": headers("X-Request-Id", *response.headers, *(RATE_LIMIT_HEADERS if operation.needs_key else ())),
    }
    if response.media_types:
        described["content"] = dict.fromkeys(response.media_types, content)
    if response.links:
        described["links"] = {
            name: {"operationId": name, "parameters": {"id": "$response.body#/response/id"}} for name in response.links
        }
    return described
