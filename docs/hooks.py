"""Hooks of the site: pages that lie outside of ``docs/``, links to them, and the help of the commands."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
    "examples/README.md": "examples.md",
    "examples/corners.py": "examples/corners.py",
    "CITATION.cff": "CITATION.cff",
}
"""Place in the site of each file of the repository that the site shows and that is not in ``docs/``."""
INSIDE = {place: path for path, place in OUTSIDE.items()}

LINK = re.compile(r"(\]\()(?![a-z]+:|#|/)([^)\s#]+)((?:#[^)\s]*)?\))")
COMMANDS = "<!-- commands -->"


def on_files(files: Any, config: Any) -> Any:
    for path, place in OUTSIDE.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    place = page.file.src_uri
    if COMMANDS in markdown:
        markdown = markdown.replace(COMMANDS, help_of_commands())
    return rewrite_links(markdown, place)


def rewrite_links(markdown: str, place: str) -> str:
    """Links of a page as the repository has them, changed to links of the site.

    Args:
        markdown: the page.
        place: its place in the site.
    """
    here = posixpath.dirname(INSIDE.get(place, f"docs/{place}"))

    def change(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(here, link[2]))
        to = OUTSIDE.get(target, target.removeprefix("docs/") if target.startswith("docs/") else None)
        if to is None:  # MkDocs reports it
            return link[0]
        return link[1] + posixpath.relpath(to, posixpath.dirname(place) or ".") + link[3]

    return LINK.sub(change, markdown)


def help_of_commands() -> str:
    """A section for each command, with its help."""
    from foveal.cli import _parser
    from foveal.cli.commands import COMMANDS

    os.environ["COLUMNS"] = "80"
    sections = []
    for name, command in COMMANDS.items():
        parsers = next(a for a in _parser(name)._actions if a.dest == "command").choices
        sections.append(f"## {name}\n\n{command.summary.capitalize()}.\n\n```text\n{parsers[name].format_help()}```\n")
    return "\n".join(sections)
