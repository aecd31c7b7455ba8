"""Code samples for each operation, in the seven languages of the original API's documentation.

Every sample runs unchanged with the reader's key and id and a `picture.jpg` in the same folder. It needs only the
language's standard library, except for jQuery and Python's requests. tests/e2e/test_reference_samples.py runs all
samples.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote, urlencode, urlsplit

from service.api.openapi.parts import Json, Operation, Parameter

KEY = "YOUR_API_KEY"
FILE_NAME = "picture.jpg"
# Files that a sample writes.
SAVED_NAME = "rendition.jpg"

Result = Literal["json", "text", "file"]


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """`json_body` and `sends_file` exclude each other. `result` is what the response holds."""

    method: str
    url: str
    headers: dict[str, str]
    result: Result
    json_body: Any = None
    sends_file: bool = False

    @property
    def target(self) -> str:
        """The path with the query string."""
        parts = urlsplit(self.url)
        return f"{parts.path}?{parts.query}" if parts.query else parts.path


def make_samples(operation: Operation, server_url: str) -> list[Json]:
    """Returns the items of `x-codeSamples`: the language, the label of its tab, and the code."""
    request = make_request(operation, server_url)
    return [
        {"lang": language, "label": label, "source": write(request)} for label, (language, write) in _LANGUAGES.items()
    ]


def make_request(operation: Operation, server_url: str) -> SampleRequest:
    """Returns the request that the samples send: the required parameters, and what `operation.sample` adds."""
    path, query = operation.path, {}
    for parameter in operation.parameters:
        value = operation.sample.get(parameter.name, _example(parameter) if parameter.required else None)
        if value is not None and parameter.location == "path":
            path = path.replace(f"{{{parameter.name}}}", quote(value, safe=","))
        elif value is not None:
            query[parameter.name] = value
    headers = {"X-Api-Key": KEY} if operation.needs_key else {}
    content = operation.body.content if operation.body is not None else {}
    sends_file = "image/jpeg" in content
    json_body = None if sends_file or not content else content["application/json"]["example"]
    if content:
        headers["Content-Type"] = "image/jpeg" if sends_file else "application/json"
    url = f"{server_url}{path}" + (f"?{urlencode(query, safe=',')}" if query else "")
    return SampleRequest(operation.method, url, headers, _result(operation), json_body, sends_file)


def _example(parameter: Parameter) -> str:
    value = parameter.example
    return ",".join(value) if isinstance(value, list) else str(value)


def _result(operation: Operation) -> Result:
    media_type = operation.responses[0].media_types[0]
    if media_type == "application/json":
        return "json"
    return "text" if media_type.startswith("text/") else "file"


def _lines(*lines: str | None) -> str:
    """Joins the lines without those that are None."""
    return "\n".join(line for line in lines if line is not None)


def _http(request: SampleRequest) -> str:
    body = f"[the bytes of {FILE_NAME}]" if request.sends_file else None
    length = f"[the size of {FILE_NAME}]"
    if request.json_body is not None:
        body = json.dumps(request.json_body)
        length = str(len(body))
    return _lines(
        f"{request.method} {request.target} HTTP/1.1",
        f"Host: {urlsplit(request.url).netloc}",
        *(f"{name}: {value}" for name, value in request.headers.items()),
        f"Content-Length: {length}" if body is not None else None,
        "",
        body or "",
    )


def _curl(request: SampleRequest) -> str:
    method = "" if request.method == "GET" or request.sends_file else f"-X {request.method} "
    parts = [f"curl {method}{shlex.quote(request.url)}"]
    parts += [f"-H {shlex.quote(f'{name}: {value}')}" for name, value in request.headers.items()]
    if request.sends_file:
        parts.append(f"--data-binary @{FILE_NAME}")
    elif request.json_body is not None:
        parts.append(f"--data {shlex.quote(json.dumps(request.json_body))}")
    if request.result == "file":
        parts.append(f"-o {SAVED_NAME}")
    return " \\\n  ".join(parts)


def _js(value: object) -> str:
    """Returns a value as JavaScript source."""
    if isinstance(value, dict):
        names = (name if name.isidentifier() else _js(name) for name in value)
        return (
            "{ " + ", ".join(f"{name}: {_js(inner)}" for name, inner in zip(names, value.values(), strict=True)) + " }"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(_js, value)) + "]"
    text = json.dumps(value)
    return f"'{text[1:-1]}'" if isinstance(value, str) and "'" not in text and '\\"' not in text else text


def _jquery(request: SampleRequest) -> str:
    headers = {name: value for name, value in request.headers.items() if name != "Content-Type"}
    content_type = request.headers.get("Content-Type")
    done = {
        "json": ".done((body) => console.log(JSON.stringify(body)));",
        "text": ".done((text) => console.log(text));",
        "file": ".done((picture) => $('<img>', { src: URL.createObjectURL(picture) }).appendTo('body'));",
    }[request.result]
    return _lines(
        "const picture = $('input[type=file]')[0].files[0];" if request.sends_file else None,
        "$.ajax({",
        f"  url: {_js(request.url)},",
        f"  method: {_js(request.method)},",
        f"  headers: {_js(headers)}," if headers else None,
        f"  contentType: {_js(content_type)}," if content_type else None,
        "  data: picture," if request.sends_file else None,
        "  processData: false," if request.sends_file else None,
        f"  data: JSON.stringify({_js(request.json_body)})," if request.json_body is not None else None,
        "  xhrFields: { responseType: 'blob' }," if request.result == "file" else None,
        f"}}){done}",
    )


def _node(request: SampleRequest) -> str:
    imports = [
        name for name, used in (("readFile", request.sends_file), ("writeFile", request.result == "file")) if used
    ]
    options = _lines(
        f"  method: {_js(request.method)}," if request.method != "GET" else None,
        f"  headers: {_js(request.headers)}," if request.headers else None,
        f"  body: await readFile('{FILE_NAME}')," if request.sends_file else None,
        f"  body: JSON.stringify({_js(request.json_body)})," if request.json_body is not None else None,
    )
    return _lines(
        f"import {{ {', '.join(imports)} }} from 'node:fs/promises';\n" if imports else None,
        f"const response = await fetch({_js(request.url)}" + (f", {{\n{options}\n}});" if options else ");"),
        {
            "json": "console.log(JSON.stringify(await response.json()));",
            "text": "console.log(await response.text());",
            "file": f"await writeFile('{SAVED_NAME}', Buffer.from(await response.arrayBuffer()));",
        }[request.result],
    )


def _java(request: SampleRequest) -> str:
    body = "HttpRequest.BodyPublishers.noBody()"
    if request.sends_file:
        body = f'HttpRequest.BodyPublishers.ofFile(Path.of("{FILE_NAME}"))'
    elif request.json_body is not None:
        body = f"HttpRequest.BodyPublishers.ofString({json.dumps(json.dumps(request.json_body))})"
    is_file = request.result == "file"
    handler = f'ofFile(Path.of("{SAVED_NAME}"))' if is_file else "ofString()"
    return _lines(
        "import java.net.URI;",
        "import java.net.http.HttpClient;",
        "import java.net.http.HttpRequest;",
        "import java.net.http.HttpResponse;",
        "import java.nio.file.Path;" if is_file or request.sends_file else None,
        "",
        "public class Sample {",
        "    public static void main(String[] arguments) throws Exception {",
        f"        URI uri = URI.create({json.dumps(request.url)});",
        "        HttpRequest request = HttpRequest.newBuilder(uri)",
        *(f"            .header({json.dumps(name)}, {json.dumps(value)})" for name, value in request.headers.items()),
        "            .GET()" if request.method == "GET" else f'            .method("{request.method}", {body})',
        "            .build();",
        "        HttpClient client = HttpClient.newHttpClient();",
        f"        var response = client.send(request, HttpResponse.BodyHandlers.{handler});",
        f"        System.out.println({'response.statusCode()' if is_file else 'response.body()'});",
        "    }",
        "}",
    )


def _python(request: SampleRequest) -> str:
    arguments = _lines(
        f"    {json.dumps(request.url)},",
        f"    headers={json.dumps(request.headers)}," if request.headers else None,
        f'    data=open("{FILE_NAME}", "rb"),' if request.sends_file else None,
        f"    json={json.dumps(request.json_body)}," if request.json_body is not None else None,
        "    timeout=30,",
    )
    return _lines(
        "import json\n" if request.result == "json" else None,
        "import requests",
        "",
        f"response = requests.{request.method.lower()}(\n{arguments}\n)",
        {
            "json": "print(json.dumps(response.json()))",
            "text": "print(response.text)",
            "file": f'open("{SAVED_NAME}", "wb").write(response.content)',
        }[request.result],
    )


def _ruby(request: SampleRequest) -> str:
    return _lines(
        "require 'json'" if request.result == "json" or request.json_body is not None else None,
        "require 'net/http'",
        "",
        f"uri = URI({_js(request.url)})",
        f"request = Net::HTTP::{request.method.capitalize()}.new(uri)",
        *(f"request[{_js(name)}] = {_js(value)}" for name, value in request.headers.items()),
        f"request.body = File.binread('{FILE_NAME}')" if request.sends_file else None,
        f"request.body = {_js(request.json_body)}.to_json" if request.json_body is not None else None,
        "response = Net::HTTP.start(uri.host, uri.port, use_ssl: uri.scheme == 'https') do |http|",
        "  http.request(request)",
        "end",
        {
            "json": "puts JSON.generate(JSON.parse(response.body))",
            "text": "puts response.body",
            "file": f"File.binwrite('{SAVED_NAME}', response.body)",
        }[request.result],
    )


# The label of each tab, with the name of the language for syntax highlighters.
_LANGUAGES: dict[str, tuple[str, Callable[[SampleRequest], str]]] = {
    "cURL": ("shell", _curl),
    "HTTP": ("http", _http),
    "jQuery": ("javascript", _jquery),
    "Node.js": ("javascript", _node),
    "Java": ("java", _java),
    "Python": ("python", _python),
    "Ruby": ("ruby", _ruby),
}
LABELS = tuple(_LANGUAGES)
