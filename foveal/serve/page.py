"""Files of the page, and the page that lists the interface.

Example:
    >>> STATIC["viewer.js"][1]
    'text/javascript; charset=utf-8'
"""

from __future__ import annotations

from html import escape
from importlib.resources import files
from typing import Any

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "txt": "text/plain; charset=utf-8",
    "svg": "image/svg+xml",
}

_SHARED = ("looks.css", "looks.js")  # with the page of `foveal.explain`

STATIC: dict[str, tuple[bytes, str]] = {
    file.name: (file.read_bytes(), _TYPES[file.name.rpartition(".")[2]])
    for file in (
        *files("foveal.serve").joinpath("static").iterdir(),
        *(files("foveal.explain").joinpath(name) for name in _SHARED),
    )
    if file.name.rpartition(".")[2] in _TYPES
}
"""Content and media type of each file of the page, by name."""


def docs_page(schema: dict[str, Any]) -> str:
    """A page of the operations of an OpenAPI schema. It needs neither script nor network."""
    parts = []
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            parts.append(_operation(schema, path, method.upper(), operation))
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{escape(schema["info"]["title"])}: REST</title>
<link rel="stylesheet" href="/static/viewer.css"></head><body class="docs"><main>
<h1>REST interface</h1><p>{escape(schema["info"].get("summary", ""))}, foveal {escape(schema["info"]["version"])}.
Programs read the same from <a href="/openapi.json">/openapi.json</a>. <a href="/">The viewer</a></p>
{"".join(parts)}</main></body></html>"""


def _operation(schema: dict[str, Any], path: str, method: str, operation: dict[str, Any]) -> str:
    rows = [
        (f"{one['name']}{'' if one.get('required') else ', optional'}", one["schema"], one.get("description", ""))
        for one in operation.get("parameters", ())
    ]
    for kind, body in operation.get("requestBody", {}).get("content", {}).items():
        form = _resolved(schema, body["schema"])
        rows += [(name, each, each.get("description", "")) for name, each in form.get("properties", {}).items()]
        example = f"curl -F path=NAME -F top_k=3 http://localhost:8000{path}" if kind.startswith("multipart") else ""
    table = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(_type(each))}</td><td>{escape(told)}</td></tr>"
        for name, each, told in rows
    )
    answers = []
    for status, answer in operation["responses"].items():
        for kind, content in answer.get("content", {"": {}}).items():
            found = _resolved(schema, content.get("schema", {}))
            keys = ", ".join(found.get("properties", {}))
            answers.append(f"<tr><td>{status}</td><td>{escape(kind)}</td><td><code>{escape(keys)}</code></td></tr>")
    return (
        f'<section class="operation"><h2><b>{method}</b> <code>{escape(path)}</code></h2>'
        f"<p>{escape(operation.get('description', operation.get('summary', '')))}</p>"
        + (f"<table>{table}</table>" if rows else "")
        + (f"<pre>{escape(example)}</pre>" if "requestBody" in operation else "")
        + f"<table>{''.join(answers)}</table></section>"
    )


def _resolved(schema: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    for one in part.get("allOf", ()):
        part = one
    name = part.get("$ref", "").rpartition("/")[2]
    return schema["components"]["schemas"][name] if name else part


def _type(part: dict[str, Any]) -> str:
    kinds = [one.get("format") or one.get("type", "") for one in part.get("anyOf", [part])]
    text = " or ".join(kind for kind in kinds if kind and kind != "null")
    return f"{text}, default {part['default']}" if part.get("default") not in (None, "") else text
