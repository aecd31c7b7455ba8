"""The calls in the documentation of the original API, and its code samples for each in some languages.

The samples are those of the documentation, including their mistakes: lower-case methods, URLs that a shell splits at
`&`, no body in most samples of the upload, no key in the samples for tags, and the print of Python 2. `REPAIRS` lists
all changes that are needed to run them.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlencode

from service.api.openapi import examples

BASE_URL = "https://api.imageresizer.io/v1"
SOURCE_URL = examples.SOURCE_URL

Language = Literal["curl", "node", "python"]


@dataclass(frozen=True)
class Call:
    """`query` is sent by the samples; `response` is the example of the response. `{IMAGE_ID}` is a placeholder."""

    name: str
    path: str
    response: Any
    method: Literal["get", "post"] = "get"
    query: dict[str, str] = field(default_factory=lambda: {"key": "YOUR_API_KEY"})

    @property
    def url(self) -> str:
        return f"{BASE_URL}{self.path}?{urlencode(self.query)}"

    def sample(self, language: Language) -> str:
        return {"curl": _curl, "node": _node, "python": _python}[language](self)


_TAGS = {"tags": ",".join(examples.TAGS)}

CREATE_FROM_URL = Call(
    "Create image from URL",
    "/images",
    examples.success(examples.image()),
    query={"key": "YOUR_API_KEY", "url": SOURCE_URL},
)
CREATE = Call("Create image from file/data", "/images", examples.success(examples.image()), method="post")
SHOW = Call("Get existing image metadata", "/images/{IMAGE_ID}", examples.success(examples.image()))
DELETE = Call("Delete an image", "/images/{IMAGE_ID}/delete", examples.success(examples.image()))
ADD_TAGS = Call(
    "Add tags to an image",
    "/images/{IMAGE_ID}/add_tags",
    examples.success(examples.image(examples.TAGS)),
    query=_TAGS,
)
REMOVE_TAGS = Call(
    "Remove tags from an image", "/images/{IMAGE_ID}/remove_tags", examples.success(examples.image()), query=_TAGS
)
ACCOUNT = Call("Get account details", "/account", examples.success(examples.ACCOUNT))

CALLS = (CREATE_FROM_URL, CREATE, SHOW, DELETE, ADD_TAGS, REMOVE_TAGS, ACCOUNT)


def _curl(call: Call) -> str:
    header = " \\\n  -H 'Content-Type: application/octet-stream'" if call.method == "post" else ""
    return f"curl -X {call.method} {call.url}{header}\n"


def _node(call: Call) -> str:
    lines = ["const request = require('node-fetch');"]
    options = [f"  method: '{call.method.upper()}'"]
    if call.method == "post":
        lines += ["const inputBody = '{}';", "const headers = {", "  'Content-Type':'application/octet-stream'", "};"]
        options += ["  body: inputBody", "  headers: headers"]
    lines += [f"fetch('{call.url}',", "{", ",\n".join(options), "})"]
    lines += [".then(function(res) {", "    return res.json();"]
    lines += ["}).then(function(body) {", "    console.log(body);", "});"]
    return "\n".join(lines) + "\n"


def _python(call: Call) -> str:
    lines = ["import requests"]
    if call.method == "post":
        lines += ["headers = {", "  'Content-Type': 'application/octet-stream'", "}"]
    parameters = ",\n".join(f"  '{name}': '{value}'" for name, value in call.query.items())
    headers = ", headers=headers" if call.method == "post" else ""
    lines += [f"r = requests.{call.method}('{BASE_URL}{call.path}', params={{", parameters, f"}}{headers})"]
    return "\n".join([*lines, "print r.json()", ""])


RepairName = Literal["quotes", "body", "key", "print"]


@dataclass(frozen=True)
class Repair:
    reason: str
    changes: dict[Language, tuple[str, str]]  # a pattern and its replacement


IMAGE_FILE = "image.jpg"

REPAIRS: dict[RepairName, Repair] = {
    "quotes": Repair("a shell ends the command at an unquoted &", {"curl": (r"(https://\S+)", r"'\1'")}),
    "body": Repair(
        "the request has no picture",
        {
            "curl": (r"(?<=application/octet-stream')", f" --data-binary @{IMAGE_FILE}"),
            "node": (r"'\{\}'", f"require('fs').readFileSync('{IMAGE_FILE}')"),
            "python": (r"headers=headers", f"headers=headers, data=open('{IMAGE_FILE}', 'rb').read()"),
        },
    ),
    "key": Repair(
        "the samples for tags have no key",
        {
            "curl": (r"\?tags=", "?key=YOUR_API_KEY&tags="),
            "node": (r"\?tags=", "?key=YOUR_API_KEY&tags="),
            "python": (r"(?=  'tags':)", "  'key': 'YOUR_API_KEY',\n"),
        },
    ),
    "print": Repair("print is a function in Python 3", {"python": (r"print (.+)", r"print(\1)")}),
}


def repair(sample: str, language: Language, names: Collection[RepairName]) -> str:
    for name in names:
        if language in REPAIRS[name].changes:
            sample = re.sub(*REPAIRS[name].changes[language], sample)
    return sample
