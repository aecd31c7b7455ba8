"""The classes that describe an operation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Parameter:
    """`schema` is JSON Schema; the values of an array are separated by commas."""

    name: str
    location: Literal["path", "query", "header"]
    description: str
    schema: Json
    required: bool = False
    example: Any = None


@dataclass(frozen=True, slots=True)
class Body:
    """`content` maps media types to media type objects of OpenAPI."""

    description: str
    content: Mapping[str, Json]
    required: bool = True


@dataclass(frozen=True, slots=True)
class Response:
    """A successful response.

    `schema` describes the whole body, and `examples` are whole bodies by name; binary bodies have neither. Without a
    media type there is no body. `links` names operations on the image in the response.
    """

    description: str
    schema: Json | None = None
    examples: Mapping[str, Any] = field(default_factory=dict)
    status: int = 200
    media_types: tuple[str, ...] = ("application/json",)
    headers: tuple[str, ...] = ()
    links: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """`path` is that of the route, with `{id}` for a variable; `errors` are codes of `service.errors`.

    `sample` holds the optional parameters that the code samples send, by name.
    """

    method: str
    path: str
    name: str
    tag: str
    summary: str
    description: str = ""
    parameters: tuple[Parameter, ...] = ()
    body: Body | None = None
    responses: tuple[Response, ...]
    errors: tuple[str, ...] = ()
    needs_key: bool = True
    sample: Mapping[str, str] = field(default_factory=dict)
