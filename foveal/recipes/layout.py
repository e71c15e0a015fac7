"""HelpLayout of help texts: at most 80 columns, fewer in a narrower terminal.

Example:
    >>> print(fill("A paragraph of a description is filled.\\n\\n  foveal fit demo    stays as it is", 20))
    A paragraph of a
    description is
    filled.
    <BLANKLINE>
      foveal fit demo    stays as it is
"""

from __future__ import annotations

import argparse
import shutil
import textwrap
from itertools import groupby

COLUMNS = 80


class HelpLayout(argparse.HelpFormatter):
    """Wraps paragraphs of a description. Lines that begin with a space, such as examples, are unchanged."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=columns() - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return textwrap.indent(fill(text, max(width - len(indent), 11)), indent)


def columns() -> int:
    """Width of the terminal in columns, at most 80."""
    return min(shutil.get_terminal_size().columns, COLUMNS)


def fill(text: str, width: int = COLUMNS) -> str:
    """Wrap paragraphs to a width. Empty lines and lines that begin with a space are unchanged."""
    lines: list[str] = []
    for as_it_is, group in groupby(text.strip("\n").splitlines(), key=lambda line: not line or line[0].isspace()):
        paragraph = list(group)
        lines += paragraph if as_it_is else textwrap.wrap(" ".join(paragraph), width, break_on_hyphens=False)
    return "\n".join(lines)


def in_columns(rows: list[tuple[str, str]], indent: str = "  ") -> list[str]:
    """Lines of two aligned columns: names and texts."""
    width = max((len(name) for name, _ in rows), default=0)
    return [f"{indent}{name:<{width}}  {text}".rstrip() for name, text in rows]
