"""Griffe extension of the site: prepares docstrings of the package for mkdocstrings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from griffe import Extension

SEVERAL = re.compile(r"(?P<indent> +)(?P<names>\w+(?:, \w+)+): ")
PUBLIC = set(
    re.findall(r'^    "(\w+)": "foveal', (Path(__file__).parents[1] / "foveal/__init__.py").read_text(), re.MULTILINE)
)


class Prepare(Extension):
    """Splits entries of several names, ``mean, std: ...``, and links public names, `` `foveal.fit` ``."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = link(split(obj.docstring.value))


def split(docstring: str) -> str:
    """The docstring with one entry for each name."""
    lines, out = docstring.splitlines(), []
    while lines:
        line = lines.pop(0)
        found = SEVERAL.match(line)
        if not found:
            out.append(line)
            continue
        more = []
        while lines and lines[0].startswith(found["indent"] + " "):
            more.append(lines.pop(0))
        for name in found["names"].split(", "):
            out += [f"{found['indent']}{name}: {line[found.end() :]}", *more]
    return "\n".join(out)


def link(docstring: str) -> str:
    """The docstring with links to public names."""
    return re.sub(
        r"(?<![`\[])`(foveal\.(\w+))`(?!`)",
        lambda name: f"[{name[0]}][{name[1]}]" if name[2] in PUBLIC else name[0],
        docstring,
    )
