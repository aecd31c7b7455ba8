"""What the description of an operation is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Parameter:
    """`schema` is JSON Schema; a list travels comma-separated."""

    name: str
    place: Literal["path", "query", "header"]
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
class Answer:
    """A success. `schema` describes the whole body, and `examples` are whole bodies by name; of bytes there is neither,
    and without a media type there is no body. `leads_to` names operations on the image that is answered."""

    description: str
    schema: Json | None = None
    examples: Mapping[str, Any] = field(default_factory=dict)
    status: int = 200
    media_types: tuple[str, ...] = ("application/json",)
    headers: tuple[str, ...] = ()
    leads_to: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """`path` is the route's, each of its variables written `{id}`; `errors` are codes of `service.errors`.

    `sample` has the optional parameters that the code samples send, by name.
    """

    method: str
    path: str
    name: str
    tag: str
    summary: str
    description: str = ""
    parameters: tuple[Parameter, ...] = ()
    body: Body | None = None
    answers: tuple[Answer, ...]
    errors: tuple[str, ...] = ()
    needs_key: bool = True
    sample: Mapping[str, str] = field(default_factory=dict)
